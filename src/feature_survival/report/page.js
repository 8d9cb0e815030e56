// What all parts share, and which of them is shown: the address's hash is #claims, #figures/NAME or
// #features/MODEL/NUMBER. Claims are plain HTML; the rest is drawn once it is asked for.

const $ = (selector, within = document) => within.querySelector(selector);
const SVG = "http://www.w3.org/2000/svg";

function put(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== false && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null));
  return node;
}
const el = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => put(document.createElementNS(SVG, tag), attributes, children);

const read = {};
const data = (id) => (read[id] ??= JSON.parse($(`[id="data-${id}"]`).textContent)); // parsed when first asked for

const sig = (value, digits = 3) => {
  if (value === null || value === undefined) return "–";
  const short = Number(value.toPrecision(digits));
  return Math.abs(short) >= 1000 ? short.toLocaleString("en") : String(short);
};
const percent = (value, digits = 1) => (value === null ? "–" : `${(100 * value).toFixed(digits)}%`);

const mark = (link, here) => (here ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current"));

let view = null; // which section is shown

function route() {
  const [asked, first, second] = decodeURIComponent(location.hash.slice(1)).split("/");
  const name = ["figures", "features"].includes(asked) ? asked : "claims";
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== `view-${name}`;
  if (name !== view) scrollTo(0, 0);
  view = name;
  for (const link of document.querySelectorAll("header nav a")) mark(link, link.hash === `#${name}`);
  $("#tip").hidden = true;
  if (name === "figures") {
    if (!$("#charts").hasChildNodes()) { fillFilters(); drawCharts(); }
    const title = first && $(`[id="figure-${first}"] h3`);
    if (title) { title.scrollIntoView(); title.focus({ preventScroll: true }); }
  }
  if (name === "features") {
    if (!$(".list thead").hasChildNodes()) fillControls();
    const known = [...document.querySelectorAll(".tabs a")].map((link) => link.textContent);
    openModel(known.includes(first) ? first : current?.model ?? known[0]);
  }
  if (name === "features" && second) openFeature(Number(second)); else closeFeature();
}

$("#feature").addEventListener("close", () => {
  const number = location.hash.split("/")[2];
  if (number) history.replaceState(null, "", `#features/${current.model}`);
  const row = [...document.querySelectorAll(".list tbody tr")].find((of) => of.dataset.feature === number);
  if (row) $("button", row).focus();
});
$("#feature").addEventListener("click", (event) => event.target.id === "feature" && closeFeature()); // beside it
addEventListener("hashchange", route);
route();
