/**
 * Run in the page by test_view.py: paint random texts as they grow, piece by piece, and return those whose elements differ
 * from the elements of the same text painted at once, or that lost a word.
 */
async ({ rounds, seed }) => {
  const { paintText } = await import("/markup.js");
  let state = seed;
  const random = (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const pieces = ["word ", "two words ", "\n", "\n\n", "```", "```js\n", "`", "**", "*", "- ", "1. ", "# ", "~~~", "  ", "https://a.test/x",
    ".", "<b>&amp;", "\u2028", "é🎈 ", ")", "_"];
  const wrong = [];
  for (let round = 0; round < rounds; round += 1) {
    const grown = document.createElement("div");
    const whole = document.createElement("div");
    let text = "";
    for (let piece = random(40); piece >= 0; piece -= 1) {
      text += pieces[random(pieces.length)];
      paintText(grown, text);
    }
    paintText(whole, text);
    const words = (string) => (string.match(/word|two|é🎈|<b>/g) ?? []).length;
    if (grown.innerHTML !== whole.innerHTML || words(whole.textContent) !== words(text) || whole.querySelector("b")) {
      wrong.push({ text, grown: grown.innerHTML, whole: whole.innerHTML });
    }
  }
  return wrong.slice(0, 2);
};
