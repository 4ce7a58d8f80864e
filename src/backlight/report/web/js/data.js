// What the page holds: compressed JSON, unpacked when it is needed.

const all = (selector, within = document) => [...within.querySelectorAll(selector)];

/** The text of base64 of compressed bytes.  No request is made: a browser reads a stream of its own. */
async function inflated(text, format) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream(format))).text();
}

const chunks = new Map(all("script[data-chunk]").flatMap((element) => element.dataset.chunk.split(" ").map((name) => [name, element])));
const unpacking = new Map();

/** The JSON of a chunk, once. */
function unpack(name) {
  if (!unpacking.has(name)) unpacking.set(name, inflated(chunks.get(name).textContent, "deflate").then(JSON.parse));
  return unpacking.get(name);
}

const tables = new Map(); // name -> of each model its columns, or null

/** Whether these tables can be read; if not, a promise that they can. */
const missing = (names) => names.filter((name) => chunks.has(name) && !tables.has(name));
const load = (names) => Promise.all(missing(names).map(async (name) => tables.set(name, await unpack(name))));

const page = await unpack("page");
const models = page.models.map((model, index) => ({ ...model, index, shown: true }));
let order = models; // in which charts show them

const unfolded = new Map();

/** The rows of a table for one model, none where the analysis was not made. */
function rowsOf(table, model) {
  const key = `${table} ${model.index}`;
  if (!unfolded.has(key)) {
    const columns = tables.get(table)?.[model.index] ?? {};
    const names = Object.keys(columns);
    const count = names.length ? columns[names[0]].length : 0;
    const row = (i) => Object.fromEntries(names.map((name) => [name, columns[name][i]]));
    unfolded.set(key, Array.from({ length: count }, (_, i) => row(i)));
  }
  return unfolded.get(key);
}

/** Plotly, from the page itself: its policy allows this script and no other. */
let plotly = null;
function loadPlotly() {
  plotly ??= inflated(chunks.get("plotly.js").textContent, "gzip").then((text) => {
    const script = document.createElement("script");
    script.textContent = text;
    document.head.append(script);
  });
  return plotly;
}
