// The panel of a unit: its numbers, its spectrum, its transfer function and its similarity to the others; two units side by side.

/** An element with a text and attributes; texts are never read as HTML. */
function make(tag, text = "", attributes = {}, ...children) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const say = (text) => { document.getElementById("said").textContent = text; };
const STATE_SIGNS = { "not applicable": "∅", failed: "✕", "not run": "○" };
const stateChip = (state) => make("span", "", { class: `state ${state.replaceAll(" ", "-")}` }, make("span", STATE_SIGNS[state], { "aria-hidden": "true" }), ` ${state}`);

const unitPanel = (() => {
  const place = document.getElementById("unit");
  const needed = [...new Set([...page.facts.map((fact) => fact.table), "similarity/matrix", "lesion/pictures", "pictures"])].filter((name) => chunks.has(name));
  let current = null, pinned = null, asked = 0;

  /** A unit by its text MODEL.UNIT; null if there is none. */
  function unitOf(text) {
    const [model, unit] = String(text).split(".").map(Number);
    const block = models[model]?.stages.flat().find((each) => each.unit === unit);
    return block ? { model: models[model], unit, block, text: `${model}.${unit}` } : null;
  }

  const rowsOfUnit = (table, { model, unit }) => rowsOf(table, model).filter((row) => row.unit === unit);

  /** A number of a unit in words: that of its last row, of a spectrum the highest frequency. */
  function factOf(fact, of) {
    const row = rowsOfUnit(fact.table, of).at(-1);
    const [value, low, high] = ["", "_low", "_high"].map((end) => scaled(row?.[fact.column + end], fact.scale));
    if (value === null) return "";
    return low === null ? figure(value) : `${figure(value)} [${figure(low)}, ${figure(high)}]`;
  }

  /** CKA of a unit with another of the same model. */
  function alike(of, step) {
    const row = rowsOfUnit("similarity/matrix", of).find((each) => each.other_unit === of.unit + step);
    return row ? `${figure(row.cka)} [${figure(row.cka_low)}, ${figure(row.cka_high)}]` : "";
  }

  const analysisOf = (table) => table.split("/")[0];

  /** A row of the table of numbers; where an analysis has no result, its state. */
  function line(name, analysis, texts, units) {
    if (!texts.some(Boolean) && units.every((of) => of.model.states[analysis] === "done")) return [];
    const cells = texts.map((text, i) => {
      const state = units[i].model.states[analysis];
      return state === "done" ? make("td", text || "–") : make("td", "", {}, stateChip(state));
    });
    return [make("tr", "", {}, make("th", name, { scope: "row" }), ...cells)];
  }

  function numbers(units) {
    const told = page.facts.flatMap((fact) => line(fact.name, analysisOf(fact.table), units.map((of) => factOf(fact, of)), units));
    const near = chunks.has("similarity/matrix") ? [["CKA with the unit before", -1], ["CKA with the unit after", 1]]
      .flatMap(([name, step]) => line(name, "similarity", units.map((of) => alike(of, step)), units)) : [];
    const seen = new Set(), rows = [...told, ...near].filter((row) => {
      const key = row.querySelector("td .state") && !row.querySelector("td:not(:has(.state))") ? null : row.textContent;
      if (key === null) return false; // said once, below
      return !seen.has(key) && seen.add(key);
    });
    const head = make("tr", "", {}, make("td"), ...units.map((of, i) => make("th", `${i ? "pinned: " : ""}unit ${of.unit} of ${of.model.name}`, { scope: "col" })));
    return make("table", "", { id: "table-unit" }, make("caption", "Numbers of the unit with 95% intervals", { class: "visually-hidden" }), make("thead", "", {}, head), make("tbody", "", {}, ...rows));
  }

  /** The analyses that say nothing about these units, with their states. */
  function unknown(units) {
    const of = new Set(page.facts.map((fact) => analysisOf(fact.table)));
    const lines = units.flatMap(({ model }) => [...of].filter((name) => model.states[name] !== "done")
      .map((name) => make("span", "", {}, `${page.analyses[name]}, ${model.name}: `, stateChip(model.states[name]))));
    return lines.length ? [make("p", "", { class: "absences" }, ...lines)] : [];
  }

  /** The three charts of one or two units: (title, horizontal axis, of a unit its points). */
  const SMALL = [
    ["Δ log amplitude (nepers)", "Frequency (units of π)", (of) => rowsOfUnit("fourier", of).map((row) => [row.frequency, row.delta])],
    ["Transfer function (nepers)", "Frequency (units of π)", (of) => rowsOfUnit("fourier", of).map((row) => [row.frequency, row.transfer])],
    ["CKA with each unit", "Unit", (of) => rowsOfUnit("similarity/matrix", of).map((row) => [row.other_unit, row.cka])],
  ];

  function charts(units, width) {
    const colours = palette();
    const known = SMALL.map(([name, across, points], i) => ({ name, across, index: i, lines: units.map((of) => points(of).filter(([, y]) => y !== null && y !== undefined)) }))
      .filter(({ lines }) => lines.some((points) => points.length));
    if (!known.length) return null;
    const layout = panels(colours, known, { subtitles: [] }, width, 165, { x: { zeroline: false }, y: { zeroline: true } });
    const data = known.flatMap(({ lines, across }, i) => {
      const tag = i ? i + 1 : "";
      delete layout[`yaxis${tag}`].matches;
      Object.assign(layout[`yaxis${tag}`], { showticklabels: true });
      Object.assign(layout[`xaxis${tag}`], { title: heading(across) });
      return lines.map((points, k) => ({
        ...INFO, xaxis: `x${i + 1}`, yaxis: `y${i + 1}`, x: points.map(([x]) => x), y: points.map(([, y]) => y), mode: points.length > 1 ? "lines+markers" : "markers",
        line: { color: colours.kind(units[k].block.kind), width: 2, dash: k ? "dash" : "solid" }, marker: { size: 5, symbol: symbolOf(units[k].block.kind) },
        text: points.map(([x, y]) => `<b>${plain(units[k].model.name)}</b><br>unit ${units[k].unit} · ${units[k].block.kind}<br>${figure(y)} at ${figure(x)}`),
      }));
    });
    return { data, layout };
  }

  const button = (text, act, attributes = {}) => {
    const element = make("button", text, { type: "button", ...attributes });
    element.addEventListener("click", act);
    return element;
  };

  function show() {
    const units = [current, ...(pinned ? [pinned] : [])];
    const isPinned = pinned?.text === current.text;
    const bar = make("p", "", { class: "tools" },
      button(isPinned ? "Pinned" : "Pin to compare", () => { pinned = current; changed(); }, { "aria-pressed": String(isPinned) }),
      ...(pinned ? [button("Unpin", () => { pinned = null; changed(); })] : []),
      button("Table as CSV", () => saveTable("table-unit", `unit-${current.text}`)), button("Close", close));
    const heading3 = make("h3", `${current.block.name} · ${current.model.name}`);
    const chart = make("div", "", { class: "chart", role: "img", "aria-label": "Spectrum, transfer function and similarity of the unit; the numbers are in the table." });
    const shown = pinned && !isPinned ? units : [current];
    place.replaceChildren(make("div", "", { class: "heading" }, heading3, bar),
      make("div", "", { class: "unit-view" }, make("div", "", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Numbers of the unit" }, numbers(shown), ...unknown(shown), ...flips(shown)), chart));
    place.hidden = false;
    keepClear();
    place.style.setProperty("--kind", `var(--${current.block.kind})`);
    const made = charts(shown, chart.clientWidth || 300);
    if (made) Plotly.react(chart, made.data, made.layout, OPTIONS);
    else chart.remove();
    mark();
  }

  /** The panel stands where it does not cover the block of its unit. */
  function keepClear() {
    const block = document.querySelector(`[data-unit="${current.text}"]`)?.getBoundingClientRect();
    if (block && block.bottom > 0 && block.top < innerHeight) place.classList.toggle("above", block.top > innerHeight / 2);
  }

  /** Small pictures of images that the unit's lesion flips, if the page has any. */
  function flips(units) {
    return units.flatMap((of) => {
      const rows = chunks.has("lesion/pictures") ? rowsOfUnit("lesion/pictures", of) : [];
      const shown = rows.map((row) => make("figure", "", {}, make("img", "", { src: tables.get("pictures")[row.picture], alt: `image ${row.image}` }), make("figcaption", `now ${row.now}`)));
      return rows.length ? [make("div", "", { class: "flips" }, make("p", `Images that change without unit ${of.unit} of ${of.model.name}`), ...shown)] : [];
    });
  }

  function mark() {
    for (const element of all(".unit")) {
      element.classList.toggle("named", element.dataset.unit === current?.text);
      element.classList.toggle("pinned", element.dataset.unit === pinned?.text);
    }
  }

  function close() {
    document.querySelector(`[data-unit="${current?.text}"]`)?.focus({ preventScroll: true }); // first, because it selects the unit
    current = null;
    asked += 1;
    place.hidden = true;
    mark();
    remember();
  }

  function changed() {
    const mine = ++asked;
    const ready = !missing(needed).length && window.Plotly;
    const go = () => { if (mine === asked && current) show(); };
    if (ready) go();
    else Promise.all([load(needed), loadPlotly()]).then(go);
    remember();
  }

  function select(text) {
    const unit = unitOf(text);
    if (!unit || unit.text === current?.text) return;
    current = unit;
    changed();
  }

  new IntersectionObserver(([{ isIntersecting }]) => place.classList.toggle("away", !isIntersecting)).observe(document.getElementById("models"));
  place.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
  return {
    select, close,
    draw: () => { if (current && !place.hidden) show(); },
    get state() { return { unit: current?.text, pin: pinned?.text }; },
    restore({ unit, pin }) { pinned = pin ? unitOf(pin) : null; current = null; if (unit) select(unit); else if (!place.hidden) close(); },
    focus: () => { place.classList.remove("away"); place.querySelector("button")?.focus(); },
  };
})();

/** A word is one stop of the tabulator; arrows walk through it, Enter goes to the panel. */
function walkUnits(word) {
  const units = all(".unit", word);
  if (!units.length) return;
  const stop = (unit) => units.forEach((other) => { other.tabIndex = other === unit ? 0 : -1; });
  stop(units[0]);
  units.forEach((unit, i) => {
    const name = () => { stop(unit); unitPanel.select(unit.dataset.unit); };
    unit.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") name(); });
    unit.addEventListener("focus", name);
    unit.addEventListener("click", (event) => { name(); if (event.detail === 0) unitPanel.focus(); });
    unit.addEventListener("keydown", (event) => {
      const next = units[{ ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: units.length - 1 }[event.key]];
      if (event.key === "Escape") unitPanel.close();
      if (!next) return;
      event.preventDefault();
      next.focus();
    });
  });
}
