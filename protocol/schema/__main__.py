"""Write the schema files again: ``python -m protocol.schema``.  Prints the names of those that changed."""

from pathlib import Path

from protocol.schema import documents


def main() -> None:
    """Rewrite the files beside this one."""
    for name, content in documents().items():
        path = Path(__file__).with_name(name)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
            print(path)


if __name__ == "__main__":
    main()
