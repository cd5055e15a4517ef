/* The heat map: a row a role, a column a layer; and what stands outside the stack of layers. */
const MOST_CELLS = 40000;

function drawMap() {
  const measure = measureOf(state.stat);
  const scrolled = byId("map").scrollLeft;
  byId("map").replaceChildren();
  byId("outside").replaceChildren();
  byId("legend").replaceChildren();
  byId("about").textContent = measure ? measure.about : "No statistics: this page knows no values of these tensors.";
  if (!measure) return;
  const column = DATA.columns[measure.place];
  const rows = [...CELLS].map(([role, layers]) => ({
    role,
    cells: LAYERS.map((layer) => (layers.has(layer) ? { role, layer, ...cellOf(layers.get(layer), column) } : null)),
  }));
  const cells = rows.flatMap((row) => row.cells.filter(Boolean));
  const outside = [...OUTSIDE].map(([role, tensors]) => ({ role, layer: null, ...cellOf(tensors, column) }));
  const z = standings(cells, measure.ratio, (cell) => peersOf(cell.first), (cell) => cell.value);
  for (const cell of cells) cell.z = z.get(cell) ?? null;
  const shows = (cell) => (state.mode === "z" ? cell.z ?? null : cell.value);
  const known = [...cells, ...outside].map(shows).filter((value) => value !== null);
  const scale = known.length ? scaleOf(known, state.mode) : null;
  const kindOf = (cell) => (shows(cell) === null ? "empty" : stepClass(scale, shows(cell)));
  const missing = rows.some((row) => row.cells.includes(null));
  drawLegend(scale, measure, missing, [...cells, ...outside].some((cell) => shows(cell) === null));
  if (LAYERS.length) drawRows(rows, measure, kindOf);
  else byId("map").append(made("p", { class: "muted" }, "No tensor belongs to a layer."));
  drawOutside(outside, measure, kindOf);
  byId("map").scrollLeft = scrolled;
  markCurrent();
}

function drawRows(rows, measure, kindOf) {
  const room = Math.floor((byId("map").clientWidth - 170) / LAYERS.length) - 1;
  const size = Math.max(LAYERS.length > 64 ? 12 : 18, Math.min(36, room));
  const every = Math.ceil(26 / size);
  const table = made("table", { class: "map", role: "grid", "aria-label": `${measure.label} of each role in each layer` });
  table.style.setProperty("--cell", `${size}px`);
  table.style.setProperty("--tall", `${Math.max(18, Math.min(26, size))}px`);
  const heads = LAYERS.map((layer, place) => made("th", { scope: "col", title: `layer ${layer}` }, place % every ? "" : String(layer)));
  table.append(made("thead", {}, made("tr", {}, made("th", { class: "role", scope: "col" }, "layer"), heads)));
  const body = made("tbody", {});
  const most = Math.max(1, Math.floor(MOST_CELLS / LAYERS.length));
  for (const row of rows.slice(0, most)) {
    const line = made("tr", {}, made("th", { class: "role", scope: "row" }, breakable(DATA.roles[row.role])));
    for (const cell of row.cells) line.append(cell ? made("td", {}, cellButton(cell, measure, kindOf(cell))) : noCell());
    body.append(line);
  }
  table.append(body);
  table.querySelector(".cell")?.setAttribute("tabindex", "0");
  table.addEventListener("keydown", moveInMap);
  byId("map").append(table);
  if (rows.length > most) {
    byId("map").append(made("p", { class: "muted" }, `The first ${whole(most)} of ${whole(rows.length)} roles are drawn.`));
  }
}

const noCell = () => made("td", { class: "none", title: "no tensor" });

function cellButton(cell, measure, kind) {
  const text = cellText(cell, measure);
  const tell = () => (byId("readout").textContent = text);
  return made("button", {
    type: "button", class: `cell ${kind}`, tabindex: "-1", title: text, "aria-label": text, "data-tensor": cell.first,
    "data-cell": `${cell.role} ${cell.layer}`, onclick: () => openTensor(cell.first), onmouseenter: tell, onfocus: tell,
  });
}

function cellText(cell, measure) {
  const where = cell.layer === null ? DATA.roles[cell.role] : `${DATA.roles[cell.role]}, layer ${cell.layer}`;
  if (cell.value === null) return `${where}: no ${measure.label}`;
  const many = cell.tensors.length > 1;
  const value = `${many ? "median " : ""}${measure.label} ${figure(cell.value)}`;
  const range = many ? ` (${figure(cell.low)} to ${figure(cell.high)} in ${whole(cell.tensors.length)} tensors)` : "";
  const z = cell.z === null || cell.z === undefined ? "" : `, z ${signed(cell.z)}`;
  return `${where}: ${value}${range}${z}`;
}

function moveInMap(event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const from = event.target.closest("td");
  if (!step || !from) return;
  event.preventDefault();
  const body = from.closest("tbody");
  let row = from.parentElement.sectionRowIndex + step[0];
  let place = from.cellIndex + step[1];
  while (body.rows[row]?.cells[place]) {
    const next = body.rows[row].cells[place].querySelector(".cell");
    if (next) {
      event.target.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
      return;
    }
    row += step[0];
    place += step[1];
  }
}

function drawLegend(scale, measure, missing, empty) {
  const legend = byId("legend");
  if (scale) {
    const ticks = made("div", { class: "ticks" }, scale.ticks.map((tick) => made("span", {}, tick)));
    const what = `${state.mode === "z" ? `z of ${measure.label}` : measure.label}, ${scale.note}`;
    const bar = made("div", { class: `bar bar-${scale.letter}` });
    legend.append(made("div", { class: "scale" }, bar, ticks, made("div", {}, what)));
  }
  const key = (kind, text) => made("span", { class: "key" }, made("span", { class: `swatch ${kind}` }), text);
  if (missing) legend.append(key("none", "no tensor"));
  if (empty) legend.append(key("empty", state.mode === "z" ? "no value or no peers" : "tensor without this statistic"));
}

function drawOutside(outside, measure, kindOf) {
  if (!outside.length) return;
  const chips = outside.slice(0, 200).map((cell) => made(
    "button", { type: "button", class: "chip", title: cellText(cell, measure), onclick: () => openTensor(cell.first) },
    made("span", { class: `swatch ${kindOf(cell)}` }), made("span", {}, breakable(DATA.roles[cell.role])),
    made("b", {}, figure(cell.value)),
  ));
  byId("outside").append(made("h3", {}, "Outside the layers"), made("div", { class: "chips" }, chips));
  if (outside.length > chips.length) {
    byId("outside").append(made("p", { class: "muted" }, `And ${whole(outside.length - chips.length)} more roles.`));
  }
}

/* Mark the open tensor's cell and row. */
function markCurrent() {
  const tensor = placeOf.get(state.tensor);
  const cell = tensor === undefined ? "" : `${DATA.role[tensor]} ${DATA.layer[tensor]}`;
  for (const marked of document.querySelectorAll("[aria-current]")) marked.removeAttribute("aria-current");
  for (const found of byId("map").querySelectorAll(".cell")) {
    if (found.dataset.cell !== cell) continue;
    found.setAttribute("aria-current", "true");
    showCell(found.parentElement);
  }
  if (tensor !== undefined) byId("table").querySelector(`tr[data-tensor="${tensor}"]`)?.setAttribute("aria-current", "true");
}

/* Scroll the map, and nothing else, so far that the cell can be seen beside the sticky names of the roles. */
function showCell(cell) {
  const map = byId("map");
  const names = cell.parentElement.cells[0].offsetWidth;
  const start = cell.offsetLeft - names - 4;
  const end = cell.offsetLeft + cell.offsetWidth + 4 - map.clientWidth;
  if (map.scrollLeft > start) map.scrollLeft = start;
  if (map.scrollLeft < end) map.scrollLeft = end;
}
