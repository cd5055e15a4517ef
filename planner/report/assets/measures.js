/* Statistics of tensors and of cells (a role in a layer), and how far each stands from its peers. */
const MAPPED = DATA.measures.map((measure, place) => ({ ...measure, place })).filter((measure) => measure.mapped);
const columnOf = (key) => DATA.columns[DATA.measures.findIndex((measure) => measure.key === key)] ?? [];
const measureOf = (key) => MAPPED.find((measure) => measure.key === key) ?? MAPPED[0];

/* Cells: role -> layer -> tensors. Tensors outside the stack have no layer. */
const CELLS = new Map();
const OUTSIDE = new Map();
for (let tensor = 0; tensor < COUNT; tensor++) {
  const layer = DATA.layer[tensor];
  const role = DATA.role[tensor];
  if (layer === null) {
    if (!OUTSIDE.has(role)) OUTSIDE.set(role, []);
    OUTSIDE.get(role).push(tensor);
    continue;
  }
  if (!CELLS.has(role)) CELLS.set(role, new Map());
  if (!CELLS.get(role).has(layer)) CELLS.get(role).set(layer, []);
  CELLS.get(role).get(layer).push(tensor);
}
const LAYERS = [...new Set(DATA.layer.filter((layer) => layer !== null))].sort((a, b) => a - b);
const peersOf = (tensor) => `${DATA.role[tensor]} ${DATA.shape[tensor]} ${DATA.dtype[tensor]}`;

/* Robust z of every value of a group, as `planner profile` computes it: the distance from the median over the median
   absolute deviation, or over the mean one where more than half agree. Sizes are compared by their logarithms. */
function robust(values, ratio) {
  const known = ratio ? values.map((value) => (value > 0 ? Math.log(value) : null)) : values;
  const present = known.filter((value) => value !== null);
  if (present.length < 2) return values.map(() => null);
  const middle = median(present);
  const distances = present.map((value) => Math.abs(value - middle));
  const mean = distances.reduce((sum, value) => sum + value, 0) / distances.length;
  const deviation = median(distances) / 0.6745 || 1.2533 * mean;
  return known.map((value) => (value === null ? null : deviation > 0 ? (value - middle) / deviation : 0));
}

/* Item -> z among the items of its group; items without a value have none. */
function standings(items, ratio, groupOf, valueOf) {
  const groups = new Map();
  for (const item of items) {
    if (valueOf(item) === null || valueOf(item) === undefined) continue;
    const group = groupOf(item);
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push(item);
  }
  const found = new Map();
  for (const group of groups.values()) {
    robust(group.map(valueOf), ratio).forEach((z, place) => found.set(group[place], z));
  }
  return found;
}

const tensorStandings = new Map();
function standingsOf(measure) {
  if (!tensorStandings.has(measure.key)) {
    const column = DATA.columns[measure.place];
    const inStack = [...CELLS.values()].flatMap((layers) => [...layers.values()].flat());
    tensorStandings.set(measure.key, standings(inStack, measure.ratio, peersOf, (tensor) => column[tensor]));
  }
  return tensorStandings.get(measure.key);
}

/* What a cell shows: the median over its tensors, the smallest and the largest, and the tensor farthest from it. */
function cellOf(tensors, column) {
  const known = tensors.filter((tensor) => column[tensor] !== null && column[tensor] !== undefined);
  if (!known.length) return { tensors, first: tensors[0], value: null };
  const values = known.map((tensor) => column[tensor]);
  const value = median(values);
  let far = known[0];
  for (const tensor of known) if (Math.abs(column[tensor] - value) > Math.abs(column[far] - value)) far = tensor;
  return { tensors, first: far, value, low: Math.min(...values), high: Math.max(...values) };
}

/* How values become colours: a function to 0..1 and the ticks under the colour bar. */
function scaleOf(values, mode) {
  if (mode === "z") {
    const end = Math.min(8, Math.max(3, Math.ceil(values.reduce((most, z) => Math.max(most, Math.abs(z)), 0))));
    return {
      letter: "d",
      at: (z) => Math.min(1, Math.max(0, (z + end) / (2 * end))),
      ticks: [`\u2264 \u2212${end}`, `\u2212${end / 2}`, "0", `${end / 2}`, `\u2265 ${end}`],
      note: "against the same role in other layers",
    };
  }
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  let there = (value) => value;
  let back = there;
  let note = "linear";
  if (mode === "log" && low > 0) {
    [there, back, note] = [Math.log, Math.exp, "logarithmic"];
  } else if (mode === "log" && values.some((value) => value !== 0)) {
    const unit = median(values.filter((value) => value !== 0).map(Math.abs));
    [there, back] = [(value) => Math.asinh(value / unit), (value) => Math.sinh(value) * unit];
    note = `linear near 0, logarithmic beyond ${figure(unit, 2)} on either side`;
  }
  const [from, to] = [there(low), there(high)];
  const ticks = from === to ? [low] : [0, 0.25, 0.5, 0.75, 1].map((part) => back(from * (1 - part) + to * part));
  return {
    letter: "s",
    at: (value) => (to > from ? share(there(value), from, to) : 0.5),
    ticks: ticks.map((tick, place) => figure(tick, place % 4 ? 2 : 3)),
    note,
  };
}

const stepClass = (scale, value) => scale.letter + Math.round(scale.at(value) * (DATA.steps - 1));
