/**
 * Run in the page by test_view.py: deliver recorded frames to the view as a connection that breaks `cuts` times would,
 * `rounds` times at random places, and return the rounds whose view differs from the one of an undisturbed delivery, or
 * that asked on the way for a permission which somebody had settled.
 */
async ({ frames, welcome, rounds, cuts, seed }) => {
  const { apply, newView } = await import("/view.js");
  let state = seed;
  const random = (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };

  /** What a welcome says of the session when `head` is its last frame. */
  const truthAt = (head) => {
    const past = frames.filter((frame) => frame.seq <= head);
    const settled = new Set(past.filter((frame) => frame.type === "broker.request_resolved").map((frame) => frame.request_id));
    const ended = new Set(past.filter((frame) => frame.type.startsWith("broker.turn_")).map((frame) => frame.id));
    const messages = past.filter((frame) => frame.type === "broker.message" && !ended.has(frame.id));
    const started = messages.filter((frame) => frame.state === "started");
    const running = started.at(-1);
    return {
      pending: past.filter((frame) => frame.type === "control_request" && !settled.has(frame.request_id)),
      turn: running ? { id: running.id, state: "running", first_seq: running.seq } : null,
      queued: messages.filter((one) => one.state === "queued" && !started.some((two) => two.id === one.id)).map((one) => one.id),
    };
  };
  const greet = (view, head) => {
    const from = view.lastSeq + 1;
    const replay = from <= head ? { from, to: head } : null;
    apply(view, { ...welcome, ...truthAt(head), head_seq: head, replay, start: view.epoch ? "attached" : welcome.start });
  };
  const shown = (view) => {
    const blocks = (item) => item.blocks?.map(({ rev, ...block }) => block);
    const items = view.items.map(({ rev, ...item }) => ({ ...item, blocks: blocks(item) }));
    return JSON.stringify({ items, prompts: view.prompts, current: view.current?.id ?? null, model: view.model, seq: view.lastSeq });
  };

  const whole = newView();
  greet(whole, 0);
  for (const frame of frames) apply(whole, frame);
  const expected = shown(whole);

  const wrong = [];
  for (let round = 0; round < rounds; round += 1) {
    const view = newView();
    for (let cut = 0; cut <= cuts; cut += 1) {
      // The session has got ahead of this client; the connection then delivers until it breaks somewhere.
      const head = Math.min(frames.length, view.lastSeq + random(frames.length));
      greet(view, head);
      const end = cut === cuts ? frames.length : Math.min(frames.length, view.lastSeq + random(frames.length / 2));
      const repeated = random(8); // a careless transport that gives some frames again
      for (const frame of frames.slice(Math.max(0, view.lastSeq - repeated), end)) {
        apply(view, structuredClone(frame));
        const open = truthAt(Math.max(head, view.lastSeq)).pending.map((request) => request.request_id);
        const stale = view.prompts.find((prompt) => !open.includes(prompt.id));
        if (stale) wrong.push({ round, seq: view.lastSeq, stale });
      }
    }
    if (shown(view) !== expected) wrong.push({ round, got: shown(view), expected });
  }
  return { wrong: wrong.slice(0, 1), count: wrong.length, turns: whole.items.length };
};
