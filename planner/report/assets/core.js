/* What every part uses: the data, elements made without markup, numbers as text, and the state in the address. */
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = document.getElementById("ns").namespaceURI;
const COUNT = DATA.names.length;
const byId = (id) => document.getElementById(id);

/* An element. Text goes in as text, never as markup; `on...` are listeners, null and false leave an attribute out. */
function made(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function drawn(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

/* A tensor's name as it may be shown: control and direction-changing characters were escaped when the page was made. */
const shownName = (tensor) => DATA.shown[tensor] ?? DATA.names[tensor];
const placeOf = new Map(DATA.names.map((name, tensor) => [name, tensor]));

/* Text that may be broken after dots and underscores. */
function breakable(text) {
  return text.split(/(?<=[._])/).flatMap((part, place) => (place ? [document.createElement("wbr"), part] : [part]));
}

const whole = (number) => number.toLocaleString("en-US");

function figure(number, digits = 4) {
  if (number === null || number === undefined) return "\u2013";
  if (Number.isInteger(number) && Math.abs(number) < 1e15) return whole(number).replace("-", "\u2212");
  const size = Math.abs(number);
  const text = size >= 1e6 || size < 1e-4 ? number.toExponential(digits - 1) : number.toPrecision(digits);
  return text.replace(/(\.\d*?)0+(?=e|$)/, "$1").replace(/\.(?=e|$)/, "").replaceAll("-", "\u2212");
}

const signed = (number, digits = 3) => (number > 0 ? "+" : "") + figure(number, digits);
const shapeText = (shape) => shape.join(" \u00d7 ") || "scalar";

/* Where a value lies between two others, 0 to 1; halved first, because the ends of float64 are farther apart than it. */
const share = (value, low, high) => (value / 2 - low / 2) / (high / 2 - low / 2 || 1);

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/* The state of the page: what the address says, or else this. */
const DEFAULTS = { stat: DATA.measures.find((measure) => measure.mapped)?.key ?? "", mode: "log", q: "", role: "",
  sort: "", tensor: null, theme: "" };
const state = { ...DEFAULTS };

function readAddress() {
  const given = {};
  for (const part of location.hash.slice(1).split("&")) {
    const [key, value = ""] = part.split("=", 2);
    if (!(key in DEFAULTS)) continue;
    try {
      given[key] = decodeURIComponent(value);
    } catch {
      given[key] = "";
    }
  }
  return given;
}

function address() {
  const parts = Object.keys(DEFAULTS).filter((key) => state[key] !== DEFAULTS[key]);
  return "#" + parts.map((key) => `${key}=${encodeURIComponent(state[key])}`).join("&");
}

/* Keep the state in the address; what opens a tensor is a step that Back takes back, the rest is not. */
function keep(step = false) {
  try {
    if (step) history.pushState(null, "", address());
    else history.replaceState(null, "", address());
  } catch {
    /* a browser that refuses this for local files only loses the links */
  }
}
