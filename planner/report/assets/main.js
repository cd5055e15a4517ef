/* Controls and address; then the first drawing. */
const THEMES = { "": "auto", light: "light", dark: "dark" };

function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => made("option", { value, selected: value === chosen }, text)));
}

function applyTheme() {
  if (!(state.theme in THEMES)) state.theme = "";
  if (state.theme) document.documentElement.dataset.theme = state.theme;
  else delete document.documentElement.dataset.theme;
  byId("theme").textContent = `Theme: ${THEMES[state.theme]}`;
}

function drawControls() {
  options(byId("measure"), MAPPED.map((measure) => [measure.key, measure.label]), measureOf(state.stat)?.key);
  options(byId("role"), [["", "all roles"], ...DATA.roles.map((role) => [role, role])], state.role);
  byId("mode").value = state.mode;
  byId("search").value = state.q;
}

function drawAll() {
  if (!["log", "linear", "z"].includes(state.mode)) state.mode = "log";
  if (!DATA.roles.includes(state.role)) state.role = "";
  limit = PAGE;
  applyTheme();
  drawControls();
  drawMap();
  drawTable();
  drawDetail();
}

function changed(redraw) {
  limit = PAGE;
  keep();
  redraw();
}

byId("measure").addEventListener("change", (event) => {
  state.stat = event.target.value;
  changed(() => [drawMap(), drawTable(), drawDetail(true)]);
});
byId("mode").addEventListener("change", (event) => {
  state.mode = event.target.value;
  changed(drawMap);
});
byId("role").addEventListener("change", (event) => {
  state.role = event.target.value;
  changed(drawTable);
});
let typing = 0;
byId("search").addEventListener("input", (event) => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    state.q = event.target.value;
    changed(drawTable);
  }, 80);
});
byId("more").addEventListener("click", () => {
  limit += PAGE;
  drawTable();
});
byId("theme").addEventListener("click", () => {
  state.theme = { "": "light", light: "dark", dark: "" }[state.theme];
  keep();
  applyTheme();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !byId("detail").hidden) closeDetail();
});
/* Back and forward say everything; a link on the page, which only names a tensor, leaves the rest as it is. */
addEventListener("popstate", () => {
  const before = state.tensor;
  Object.assign(state, readAddress());
  if (!location.hash.includes("tensor=")) state.tensor = null;
  keep();
  drawAll();
  if (state.tensor !== before) byId("detail-title")?.focus({ preventScroll: true });
});
let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => [drawMap(), drawDetail(true)], 150);
});

Object.assign(state, readAddress());
for (const id of ["theme", "map-section", "tensors"]) byId(id).hidden = false;
if (DATA.histogramsLeftOut) {
  const note = `To keep this page small, the histograms of ${whole(DATA.histogramsLeftOut)} tensors were left out; their quantiles are drawn.`;
  byId("count").before(made("p", { class: "muted" }, note));
}
drawAll();
