/* The table of all tensors: filtered, sorted, 500 rows at a time. */
const PAGE = 500;
let limit = PAGE;

function tableColumns() {
  const measure = measureOf(state.stat);
  const others = ["std", "abs_max", "kurtosis", "outlier_share"].filter((key) => key !== measure?.key && columnOf(key).length);
  const columns = [
    { key: "name", title: "tensor", of: (tensor) => DATA.names[tensor], text: shownName },
    { key: "layer", title: "layer", number: true, of: (tensor) => DATA.layer[tensor] },
    { key: "dtype", title: "dtype", of: (tensor) => DATA.dtypes[DATA.dtype[tensor]] },
    {
      key: "elements", title: "shape", of: (tensor) => DATA.elements[tensor],
      text: (tensor) => shapeText(DATA.shapes[DATA.shape[tensor]]),
    },
  ];
  if (DATA.expert) columns.splice(2, 0, { key: "expert", title: "expert", number: true, of: (tensor) => DATA.expert[tensor] });
  if (measure) {
    const z = standingsOf(measure);
    const column = DATA.columns[measure.place];
    columns.push({ key: "stat", title: measure.label, number: true, about: measure.about, of: (tensor) => column[tensor] });
    const text = (tensor) => (z.get(tensor) === null || z.get(tensor) === undefined ? "\u2013" : signed(z.get(tensor)));
    const about = `How far the ${measure.label} is from that of the same role in other layers`;
    columns.push({ key: "z", title: "z", number: true, about, of: (tensor) => z.get(tensor) ?? null, text, size: Math.abs });
  }
  for (const key of others) {
    const other = measureOf(key);
    columns.push({ key, title: other.label, number: true, about: other.about, of: (tensor) => DATA.columns[other.place][tensor] });
  }
  return columns;
}

/* Numbers, the largest first, nulls last; texts in the order of the alphabet. "-key" is the other way round. */
function sorted(tensors, columns) {
  const column = columns.find((candidate) => candidate.key === state.sort.replace(/^-/, ""));
  if (!column) return tensors;
  const turn = state.sort.startsWith("-") ? -1 : 1;
  const size = column.size ?? ((value) => value);
  const keyed = tensors.map((tensor) => [column.of(tensor), tensor]);
  keyed.sort(([a, first], [b, second]) => {
    if (a === null || b === null) return (a === null) - (b === null) || first - second;
    const order = typeof a === "string" ? (a < b ? -1 : a > b ? 1 : 0) : size(b) - size(a);
    return turn * order || first - second;
  });
  return keyed.map(([, tensor]) => tensor);
}

function matching() {
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  const role = state.role === "" ? -1 : DATA.roles.indexOf(state.role);
  const found = [];
  for (let tensor = 0; tensor < COUNT; tensor++) {
    if (role >= 0 && DATA.role[tensor] !== role) continue;
    const name = shownName(tensor).toLowerCase();
    if (words.every((word) => name.includes(word))) found.push(tensor);
  }
  return found;
}

function drawTable() {
  const columns = tableColumns();
  const found = sorted(matching(), columns);
  const shown = found.slice(0, limit);
  const body = made("tbody", {}, shown.map((tensor) => tableRow(tensor, columns)));
  const heads = columns.map((column) => {
    const current = state.sort.replace(/^-/, "") === column.key;
    const down = current && (state.sort.startsWith("-") === !column.number);
    const sign = current ? (down ? " \u25be" : " \u25b4") : "";
    const reverse = column.number ? down : !down;
    const order = current ? (reverse ? "descending" : "ascending") : null;
    return made("th", { scope: "col", class: column.number ? "n" : null, "aria-sort": order }, made("button", {
      type: "button", title: column.about, "data-sort": column.key, onclick: () => sortBy(column.key),
    }, column.title + sign));
  });
  const table = made("table", { class: "tensors" }, made("thead", {}, made("tr", {}, heads)), body);
  byId("table").replaceChildren(table);
  const cut = shown.length < found.length ? `, the first ${whole(shown.length)} shown` : "";
  byId("count").textContent = `${whole(found.length)} of ${whole(COUNT)} tensors${cut}`;
  byId("more").hidden = !cut;
  markCurrent();
}

function tableRow(tensor, columns) {
  const [name, ...others] = columns;
  const open = () => openTensor(tensor);
  const button = made("button", { type: "button", class: "mono", onclick: open }, breakable(name.text(tensor) || "(no name)"));
  return made("tr", { "data-tensor": tensor }, made("td", { class: "name" }, button), others.map((column) => {
    const value = column.of(tensor);
    const text = column.text ? column.text(tensor) : typeof value === "string" ? value : figure(value);
    return made("td", { class: column.number ? "n" : "nowrap" }, text);
  }));
}

function sortBy(key) {
  state.sort = state.sort === key ? `-${key}` : state.sort === `-${key}` ? "" : key;
  keep();
  drawTable();
  byId("table").querySelector(`[data-sort="${key}"]`).focus();
}
