// What readers take away: rows, tables and claims as CSV, charts as SVG and PNG.

const cell = (value) => (/[",\n\r]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? ""));
const csvOf = (lines) => `${lines.map((line) => line.map(cell).join(",")).join("\r\n")}\r\n`;

function save(address, name) {
  const link = make("a", "", { href: address, download: name });
  link.click();
  say(`${name} is saved`);
}

function saveText(text, name) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  save(address, name);
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

const fileName = (text) => String(text).replace(/[^\w.-]+/g, "-");

function csvOfRows(rows) {
  const columns = [...new Set(rows.flatMap(Object.keys))];
  return csvOf([columns, ...rows.map((row) => columns.map((column) => row[column]))]);
}

/** The rows of an analysis, of every model. */
async function saveRows(table) {
  await load([table]);
  if (!models.some((model) => rowsOf(table, model).length)) { say("These rows are not on this page"); alert("This page has too many models to hold these rows. They are in the folder of the results, in MODEL/ANALYSIS/rows.parquet."); return; }
  saveText(csvOfRows(models.flatMap((model) => rowsOf(table, model).map((row) => ({ model: model.name, ...row })))), `${fileName(table)}.csv`);
}

async function saveClaims() {
  const named = ({ models: about, correction, measured, rests_on, remarks, ...row }) => ({ ...row, models: about.map((index) => models[index].name).join("; "), correction });
  saveText(csvOfRows((await unpack("claims")).map(named)), "claims.csv");
}

/** A table as it stands on the page, without its hidden rows and columns. */
function saveTable(id, name) {
  const shown = (elements) => [...elements].filter((element) => !element.hidden);
  const text = (element) => element.textContent.replace(/\s+/g, " ").trim();
  saveText(csvOf(shown(document.getElementById(id).rows).map((row) => shown(row.cells).map(text))), `${fileName(name)}.csv`);
}

/** A chart on the colour of the page, because transparent ink is lost on another one. */
async function saveChart(name, format) {
  const place = document.querySelector(`[data-chart="${CSS.escape(name)}"]`), { width, height } = place.layout;
  const background = palette().of("paper");
  const picture = { data: place.data, layout: { ...place.layout, paper_bgcolor: background, plot_bgcolor: background, margin: { ...place.layout.margin, l: Math.max(8, place.layout.margin.l), t: 12 } } };
  save(await Plotly.toImage(picture, { format, width, height, scale: format === "png" ? 2 : 1 }), `${fileName(name)}.${format}`);
}

function exports() {
  for (const button of all("[data-csv]")) button.addEventListener("click", () => saveRows(button.dataset.csv));
  for (const button of all("[data-table-csv]")) button.addEventListener("click", () => saveTable(button.dataset.tableCsv, button.dataset.tableCsv.replace(/^table-/, "")));
  for (const button of all("[data-claims-csv]")) button.addEventListener("click", saveClaims);
  for (const button of all("[data-export]")) button.addEventListener("click", () => saveChart(button.dataset.export, button.dataset.format));
}
