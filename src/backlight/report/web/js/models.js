// Which models are shown, and in which order: switches of a few, a table with search, filters and sorting of many.

/** Show what is about a shown model, hide the rest, and draw again. */
function applyShown() {
  for (const element of all("[data-model]")) element.hidden = !models[Number(element.dataset.model)].shown;
  for (const element of all("[data-about]")) element.hidden = element.dataset.about.split(" ").some((index) => !models[Number(index)].shown);
  drawAll();
  remember();
}

function switchModels() {
  for (const box of all("[data-switch]")) {
    box.addEventListener("change", () => { models[Number(box.dataset.switch)].shown = box.checked; applyShown(); });
  }
}

/** More rows of a table. */
function switchMinor() {
  for (const box of all("[data-minor]")) {
    box.addEventListener("change", () => document.getElementById(box.dataset.minor).classList.toggle("complete", box.checked));
  }
}

function switchTabs() {
  for (const list of all("[role=tablist]")) {
    const tabs = all("[role=tab]", list);
    const select = (chosen) => {
      for (const tab of tabs) {
        tab.setAttribute("aria-selected", String(tab === chosen));
        tab.tabIndex = tab === chosen ? 0 : -1;
        document.getElementById(tab.getAttribute("aria-controls")).classList.toggle("other-tab", tab !== chosen);
      }
      drawAll();
      remember();
    };
    tabs.forEach((tab, i) => {
      tab.addEventListener("click", () => select(tab));
      tab.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const next = tabs[(i + step + tabs.length) % tabs.length];
        select(next);
        next.focus();
      });
    });
  }
}

function switchLogarithm() {
  for (const box of all("[data-log]")) {
    box.addEventListener("change", () => {
      page.charts[box.dataset.log].log = box.checked;
      all(`[data-chart="${box.dataset.log}"]`).forEach(draw);
      remember();
    });
  }
}

// --- tables that sort

/** A cell as a number where it begins with one, else as text. */
function sortKey(cell) {
  const text = cell?.dataset.value ?? cell?.textContent.trim() ?? "";
  const number = parseFloat(text.replace(/^[^\d−.-]+/, "").replace("−", "-").replaceAll(",", ""));
  return Number.isFinite(number) && /^[✓✗?–∅✕○\s]*[−-]?[\d.]/.test(text) ? number : text.toLowerCase();
}

/** Those without a number come last, in either direction. */
function compare(a, b, sign) {
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
}

function sortBy(table, column, down) {
  const heads = all("thead th", table), body = table.tBodies[0];
  heads.forEach((head, i) => head.setAttribute("aria-sort", i === column ? (down ? "descending" : "ascending") : "none"));
  const rows = all("tr", body).map((row) => [sortKey(row.cells[column]), row]);
  rows.sort(([a], [b]) => compare(a, b, down ? -1 : 1));
  body.append(...rows.map(([, row]) => row));
}

function sortable(table, after = () => {}) {
  for (const button of all("[data-sort]", table)) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      sortBy(table, head.cellIndex, head.getAttribute("aria-sort") === "ascending");
      after();
    });
  }
}

// --- a survey

const tableOfModels = document.getElementById("table-models");

function filtered() {
  const [words, family, kind] = ["search", "family", "kind"].map((name) => document.querySelector(`[data-${name}]`).value.trim().toLowerCase());
  for (const model of models) {
    const says = `${model.name} ${model.family} ${model.kind}`.toLowerCase();
    model.shown = words.split(/\s+/).every((word) => says.includes(word)) && (!family || model.family.toLowerCase() === family) && (!kind || model.kind.toLowerCase() === kind);
  }
  for (const row of all("[data-row]", tableOfModels)) row.hidden = !models[Number(row.dataset.row)].shown;
  document.querySelector("[data-shown]").textContent = `${models.filter((model) => model.shown).length} of ${models.length} models`;
  applyShown();
}

function reordered() {
  order = all("[data-row]", tableOfModels).map((row) => models[Number(row.dataset.row)]);
  drawAll();
  remember();
}

/** The word of one model of a survey, as a few models have it. */
function showWord(model) {
  const article = document.getElementById("one-model");
  const word = make("div", "", { class: "word", role: "group", "aria-label": `Units of ${model.name}: ${model.word}` }, ...model.stages.map((stage, i) =>
    make("div", "", { class: "stage" }, make("div", "", { class: "blocks" }, ...stage.map((unit) =>
      make("button", unit.letter, { type: "button", class: `unit ${unit.kind}`, tabindex: "-1", style: `--kind: var(--${unit.kind})`, "data-unit": `${model.index}.${unit.unit}`, "aria-label": unit.name }))),
    make("span", `stage ${i + 1}`, { class: "stage-name" }))));
  article.querySelector("h3").textContent = model.name;
  article.querySelector(".word").replaceWith(word);
  article.querySelector(":scope > p").textContent = `${model.sentence}${model.accuracy ? ` Accuracy ${model.accuracy}.` : ""}`;
  article.hidden = false;
  walkUnits(word);
  word.querySelector(".unit")?.focus();
}

function surveyModels() {
  if (!tableOfModels) return;
  sortable(tableOfModels, reordered);
  for (const name of ["search", "family", "kind"]) document.querySelector(`[data-${name}]`).addEventListener("input", filtered);
  for (const button of all("[data-word]")) button.addEventListener("click", () => showWord(models[Number(button.dataset.word)]));
  surveyMetrics();
}

/** The metrics of a section, a row a model, made when they come into sight. */
function surveyMetrics() {
  const sight = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach(async ({ target }) => {
    sight.unobserve(target);
    const metrics = (await unpack("metrics"))[target.dataset.metrics];
    if (metrics) target.append(...metricsTable(target.dataset.metrics, metrics));
  }), { rootMargin: "400px" });
  all("[data-metrics]").forEach((place) => sight.observe(place));
}

function metricsTable(name, { caption, rows }) {
  const id = `table-${name}-metrics`;
  const head = make("tr", "", {}, ...[["Model", ""], ...rows].map(([title, what]) =>
    make("th", "", { scope: "col" }, make("button", title, { type: "button", "data-sort": "" }), make("small", what))));
  const body = order.map((model) => make("tr", "", { "data-model": model.index }, make("th", model.name, { scope: "row" }), ...rows.map(([, , cells]) => {
    const state = model.states[name];
    return state === "done" ? make("td", cells[model.index]) : make("td", "", {}, stateChip(state));
  })));
  const table = make("table", "", { class: "metrics sortable", id }, make("caption", caption), make("thead", "", {}, head), make("tbody", "", {}, ...body));
  all("tr", table.tBodies[0]).forEach((row) => { row.hidden = !models[Number(row.dataset.model)].shown; });
  sortable(table);
  const csv = make("button", "Table as CSV", { type: "button" });
  csv.addEventListener("click", () => saveTable(id, `${name}-metrics`));
  return [make("div", "", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": caption }, table), make("p", "", { class: "tools" }, csv)];
}

/** The entries of a statement, made when a reader opens them. */
function listEntries() {
  for (const details of all("[data-entries]")) {
    details.addEventListener("toggle", async () => {
      const list = details.querySelector("ul");
      if (!details.open || list.children.length) return;
      list.append(...(await unpack("claims")).filter((row) => row.id === details.dataset.entries).map(entryOf));
    });
  }
}

const SIGNS = { holds: "✓", "does not hold": "✗", undecided: "?", "not comparable": "–" };

function entryOf(row) {
  const about = row.models.length > 1 ? { "data-about": row.models.join(" ") } : { "data-model": row.models[0] };
  const beside = [row.correction, row.caution && `Caution: ${row.caution}`].filter(Boolean).map((text) => make("span", text, { class: "beside-verdict" }));
  const chip = make("span", "", { class: `chip ${row.verdict.replaceAll(" ", "-")}` }, make("span", SIGNS[row.verdict] ?? "", { "aria-hidden": "true" }), ` ${row.verdict}`);
  const item = make("li", "", about, make("span", row.models.map((index) => models[index].name).join(", "), { class: "who" }), chip, ...beside,
    make("span", `${row.measured} `, { class: "measured" }, make("small", [row.rests_on, ...row.remarks].filter(Boolean).join("; "))));
  item.hidden = row.models.some((index) => !models[index].shown);
  return item;
}
