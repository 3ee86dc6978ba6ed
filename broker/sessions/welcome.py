"""The ``broker.welcome`` of a session at this moment: the whole truth at ``head_seq``.

Pure but for reading the session.  Caller: ``broker.sessions.opening``, in the breath in which the connection is
attached.
"""

from msgspec import Raw

from broker.config.limits import Limits as Allowed
from broker.sessions.session import Session
from broker.turns.replay import Resume
from protocol.codes import LastClose, MissReason, Start
from protocol.frames import CliInfo, Hello, Limits, Replay, TurnInfo, Welcome
from protocol.lines import MAX_LINE_BYTES


def welcome(
    session: Session,
    hello: Hello,
    resume: Resume,
    *,
    start: Start | None,
    miss_reason: MissReason | None,
    ready_ms: float | None,
    ignored: list[str],
    cli: tuple[str, bool],
    max_message_bytes: int,
    allowed: Allowed,
    last_close: LastClose | None,
) -> Welcome:
    """Build the frame.  ``cli`` is version and whether it is simulated; ``ready_ms`` from hello to the last answer;
    ``allowed`` what this connection may ask for; ``last_close`` why the broker ended the client's last one.

    ``start`` and ``ready_ms`` are None while the session has no process.
    """
    log, config = session.log, session.config
    return Welcome(
        session_id=session.key[2],
        epoch=log.epoch,
        head_seq=log.head,
        resumed=hello.session.last_seq is not None and resume.lost is None,
        replay=Replay(resume.cursor + 1, log.head) if resume.cursor < log.head else None,
        lost=resume.lost,
        start=start,
        miss_reason=miss_reason,
        ready_ms=None if ready_ms is None else round(ready_ms, 3),
        role=hello.role,
        view=hello.view,
        cli=CliInfo(cli[0], cli[1], session.cli_session_id),
        options_ignored=ignored,
        turn=_running(session),
        queued=session.turns.queued_ids,
        pending=[Raw(line) for line in _pending(session, hello)],
        limits=Limits(
            max_message_bytes=max_message_bytes,
            max_frame_bytes=MAX_LINE_BYTES,
            messages_per_second=allowed.messages_per_second,
            messages_burst=allowed.messages_burst,
            queue=config.turn.queue,
            replay_frames=config.replay.frames,
            replay_bytes=config.replay.bytes,
            replay_seconds=config.replay.seconds,
        ),
        last_close=last_close,
    )


def _pending(session: Session, hello: Hello) -> list[bytes]:
    is_controller = hello.role == "controller"
    return session.exchange.questions.lines_for(hello.client.instance, is_controller=is_controller)


def _running(session: Session) -> TurnInfo | None:
    turn = session.turns.current
    if turn is None:
        return None
    return TurnInfo(turn.id, "running", turn.first_seq, [steered.id for steered in session.turns.steered])
