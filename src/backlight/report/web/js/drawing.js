// Draws a chart when it comes into sight, and again when the models, the width or the colours change.

const PAPER_WIDTH = 660; // pixels between the margins of A4 and of Letter
const root = document.documentElement;
const places = all("[data-chart]");
const fine = matchMedia("(pointer: fine)").matches; // a finger scrolls the page
const OPTIONS = { displayModeBar: false };
const drawn = new Map(); // place -> the width that it was last drawn at
const sighted = new Set();
const printing = () => root.classList.contains("printing");

/** The height that lets a figure end where the words beside it do; 0 where they are below it. */
function roomOf(place) {
  const aside = place.closest(".beside")?.querySelector("aside"), whole = place.closest("[data-figure]");
  if (!aside || aside.offsetLeft <= whole.offsetLeft) return 0;
  return Math.min(560, Math.max(430, aside.clientHeight - whole.clientHeight + place.clientHeight - 16));
}

/** What a chart shows of these models: lines by family where there are many, at most `PANELS` models where each has a panel. */
function pictured(chart, shown, colours, width, room) {
  if (shown.length > PANELS && LINES[chart.kind]) return { ...familyChart(chart, shown, colours, width), models: shown.length };
  const some = LINES[chart.kind] ? shown : shown.slice(0, PANELS);
  return { ...CHARTS[chart.kind](chart, some, colours, width, room), models: some.length };
}

function limited(name, count, of) {
  const note = document.querySelector(`[data-limited="${CSS.escape(name)}"]`);
  note.hidden = count >= of;
  note.textContent = note.hidden ? "" : `${count} of ${of} models are drawn, the first of the table of models. Sort or filter it to see others.`;
}

function draw(place) {
  const width = printing() ? PAPER_WIDTH : place.clientWidth;
  if (!width) return; // behind a tab
  const name = place.dataset.chart, chart = page.charts[name];
  if (missing([chart.table]).length || !window.Plotly) {
    Promise.all([load([chart.table]), loadPlotly()]).then(() => draw(place));
    return;
  }
  drawn.set(place, width);
  place.classList.remove("waiting");
  const measured = order.filter((model) => model.shown && tables.get(chart.table)[model.index]);
  const shown = measured.filter((model) => rowsOf(chart.table, model).length);
  const made = shown.length ? pictured(chart, shown, palette(), width, roomOf(place)) : { data: [] };
  place.classList.toggle("empty", !made.data.length);
  if (!made.data.length) {
    Plotly.purge(place);
    place.textContent = measured.length && !shown.length ? "The rows of this chart are not on this page, which has too many models to hold them; they are in the folder of the results."
      : "No model that was measured here is switched on.";
    limited(name, 0, 0);
    return;
  }
  if (!place.querySelector(".plot-container")) place.textContent = "";
  limited(name, made.models, shown.length);
  Plotly.react(place, made.data, made.layout, OPTIONS);
}

/** Draw what is or was in sight again; on paper, everything. */
const drawAll = () => places.forEach((place) => { if (printing() || sighted.has(place)) draw(place); });

function keepFitting() {
  const resized = new ResizeObserver((entries) => requestAnimationFrame(() => {
    for (const { target } of entries) {
      if (!printing() && sighted.has(target) && drawn.get(target) !== target.clientWidth) draw(target);
    }
  }));
  const sight = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      sight.unobserve(target);
      sighted.add(target);
      draw(target);
      resized.observe(target);
    }
  }, { rootMargin: "500px" });
  places.forEach((place) => sight.observe(place));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawAll(); unitPanel.draw(); });
}

/** Unpack the rest when there is nothing else to do, so that a print is complete at once. */
async function unpackTheRest() {
  const idle = () => new Promise((done) => (window.requestIdleCallback ?? setTimeout)(done));
  await loadPlotly();
  for (const name of new Set(Object.values(page.charts).map((chart) => chart.table))) {
    await idle();
    await load([name]);
  }
  root.dataset.unpacked = "";
}

/** On paper: light colours, charts of the paper's width, everything open; and back. */
function print() {
  let opened = [];
  const prepare = (onPaper) => {
    if (onPaper === printing()) return;
    root.classList.toggle("printing", onPaper);
    if (onPaper) opened = all("details:not([open]):not([data-entries])");
    opened.forEach((details) => { details.open = onPaper; });
    drawAll();
  };
  matchMedia("print").addEventListener("change", (event) => prepare(event.matches));
  addEventListener("beforeprint", () => prepare(true));
  addEventListener("afterprint", () => prepare(false));
  if (matchMedia("print").matches) prepare(true);
}
