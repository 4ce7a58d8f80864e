// The address of a panel and of what is shown: #PANEL?hide=1,2&tab=...&log=...&unit=0.3&pin=1.2&search=...&family=...&kind=...&sort=2d

let panel = "", restoring = false;

/** What differs from the page as it opens. */
function stateNow() {
  const state = new URLSearchParams();
  const put = (name, value) => { if (value) state.set(name, value); };
  const boxes = all("[data-switch]");
  put("hide", boxes.filter((box) => !box.checked).map((box) => box.dataset.switch).join(","));
  put("tab", all("[role=tab][aria-selected=true]").filter((tab) => tab.previousElementSibling).map((tab) => tab.getAttribute("aria-controls")).join(","));
  put("log", all("[data-log]").filter((box) => box.checked !== box.defaultChecked).map((box) => box.dataset.log).join(","));
  for (const name of ["search", "family", "kind"]) put(name, document.querySelector(`[data-${name}]`)?.value);
  const sorted = tableOfModels?.querySelector("[aria-sort=ascending], [aria-sort=descending]");
  if (sorted) put("sort", `${sorted.cellIndex}${sorted.getAttribute("aria-sort") === "descending" ? "d" : "a"}`);
  for (const [name, value] of Object.entries(unitPanel.state)) put(name, value);
  return state.toString();
}

const address = (name) => { const state = stateNow(); return `#${name}${state ? `?${state}` : ""}`; };

/** Keep the state in the address, so that it can be copied, and the page loads as it is. */
function remember() {
  if (restoring) return;
  const hash = address(panel);
  history.replaceState(null, "", hash === "#" ? location.pathname + location.search : hash);
}

function set(element, checked) {
  if (element && element.checked !== checked) { element.checked = checked; element.dispatchEvent(new Event("change")); }
}

/** Bring the page into the state of its address, and the panel into sight. */
function restore() {
  const [name, query = ""] = decodeURI(location.hash.slice(1)).split("?");
  const state = new URLSearchParams(query), listed = (key) => (state.get(key) ?? "").split(",").filter(Boolean);
  restoring = true;
  panel = document.getElementById(name) ? name : state.has("unit") ? "models" : "";
  if (query) {
    for (const box of all("[data-switch]")) set(box, !listed("hide").includes(box.dataset.switch));
    for (const id of listed("tab")) document.querySelector(`[aria-controls="${CSS.escape(id)}"]`)?.click();
    for (const id of listed("log")) { const box = document.querySelector(`[data-log="${CSS.escape(id)}"]`); set(box, box && !box.defaultChecked); }
    const sort = /^(\d+)([ad])$/.exec(state.get("sort") ?? "");
    if (sort && tableOfModels?.tHead.rows[0].cells[sort[1]]) { sortBy(tableOfModels, Number(sort[1]), sort[2] === "d"); reordered(); }
    for (const field of ["search", "family", "kind"]) if (tableOfModels && state.get(field)) document.querySelector(`[data-${field}]`).value = state.get(field);
    if (tableOfModels) filtered();
    const unit = state.get("unit");
    if (tableOfModels && unit) { const model = models[Number(unit.split(".")[0])]; if (model) showWord(model); }
    unitPanel.restore({ unit, pin: state.get("pin") });
  }
  restoring = false;
  if (panel) document.getElementById(panel).scrollIntoView({ behavior: "instant" });
}

function links() {
  for (const link of all("a[href^='#']")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      panel = link.getAttribute("href").slice(1);
      history.pushState(null, "", address(panel));
      const target = document.getElementById(panel);
      if (!link.classList.contains("permalink")) {
        target?.scrollIntoView();
        if (target && !target.hasAttribute("tabindex")) target.tabIndex = -1;
        target?.focus({ preventScroll: true });
        return;
      }
      navigator.clipboard?.writeText(location.href).then(() => say("The link is copied"), () => {});
      say("The address of the page is now that of this chart");
    });
  }
  addEventListener("hashchange", restore);
  addEventListener("popstate", restore);
}
