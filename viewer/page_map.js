"use strict";
// The map of all futures: a card for each stop, lines between them. Time stands still meanwhile.
const CARD = 64, ACROSS = 148, DOWN = 112;
let chosen = null, resume = false;  // a node; whether to go on when the map is closed

function openMap() {
  if (!state) return;
  held.clear(); hold();
  resume = state.status === "playing";
  chosen = null;
  $("map").showModal();
  send({map: true});
  chart();
}

function closeMap(goes) {
  if (!$("map").open) return;
  resume = resume && !goes;
  $("map").close();
}
$("map").onclose = () => {
  if (open) send({map: false});
  if (open && resume) send({pause: false});
};
$("mapclose").onclick = () => closeMap(false);

function travel(node) {
  send({jump: node});
  closeMap(true);
}

function chart() {
  const stops = state.map;
  const lost = stops.length && !stops.some((stop) => stop.node === chosen);
  if (lost) chosen = stops.find((stop) => stop.here).node;
  const rows = new Set(stops.map((stop) => stop.row)).size, steps = stops.reduce((sum, stop) => sum + stop.steps, 0);
  $("mapabout").textContent = stops.length ? `${rows} future${rows > 1 ? "s" : ""}, ${steps} steps imagined` : "";
  const cards = new Map([...$("chart").querySelectorAll(".stop")].map((card) => [Number(card.dataset.node), card]));
  const lines = [];
  for (const stop of stops) {
    const card = cards.get(stop.node) || place(stop.node);
    cards.delete(stop.node);
    card.className = ["stop", stop.here && "here", stop.passed && "passed", stop.name && "named",
      stop.node === chosen && "chosen"].filter(Boolean).join(" ");
    card.style.left = `${8 + stop.column * ACROSS}px`;
    card.style.top = `${8 + stop.row * DOWN}px`;
    const called = stop.name || (stop.here ? "here" : stop.number ? `step ${stop.number}` : `start ${stop.start + 1}`);
    card.lastChild.textContent = called;
    card.setAttribute("aria-label", `${called}: ${stop.text || "a start"}`);
    if (pictures.has(stop.node)) paint(card.firstChild, pictures.get(stop.node));
    if (stop.parent >= 0) lines.push(...edge(stops[stop.parent], stop));
  }
  for (const gone of cards.values()) gone.remove();
  $("edges").replaceChildren(...lines);
  $("edges").style.width = `${(Math.max(0, ...stops.map((stop) => stop.column)) + 1) * ACROSS}px`;
  $("edges").style.height = `${(Math.max(0, ...stops.map((stop) => stop.row)) + 1) * DOWN}px`;
  const stop = stops.find((one) => one.node === chosen);
  $("chosen").textContent = stop ? `frame ${stop.node}, step ${stop.number}` : "";
  if (document.activeElement !== $("nodename")) $("nodename").value = stop ? stop.name : "";
  if (lost) reveal();
}

function reveal() {
  $("chart").querySelector(".chosen").scrollIntoView({block: "center", inline: "center"});
}

function place(node) {
  const card = element("button", "stop");
  card.dataset.node = node;
  card.append(element("canvas"), element("span"));
  card.onclick = () => { if (chosen === node) return travel(node); select(node); };
  $("chart").append(card);
  return card;
}

function select(node) {
  chosen = node;
  chart();
  reveal();
}

function edge(from, to) {
  const make = (tag, kind) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    made.setAttribute("class", [kind, to.passed && "passed", to.led].filter(Boolean).join(" "));
    return made;
  };
  const x = 8 + from.column * ACROSS + CARD, y = 8 + from.row * DOWN + CARD / 2;
  const right = 8 + to.column * ACROSS, down = 8 + to.row * DOWN + CARD / 2;
  const line = make("path", ""), text = make("text", "");
  line.setAttribute("d", `M${x} ${y} H${x + 10} V${down} H${right}`);
  text.setAttribute("x", x + 14);
  text.setAttribute("y", down - 6);
  const label = to.label.length > 10 ? `${to.label.slice(0, 9)}…` : to.label;
  text.textContent = label;
  const steps = make("text", "");
  steps.setAttribute("x", x + 14);
  steps.setAttribute("y", down + 16);
  steps.textContent = `+${to.steps}`;
  return [line, text, steps];
}

function moved(way) {  // as in viewer/outline.py
  const stops = state.map, index = stops.findIndex((stop) => stop.node === chosen), now = stops[index];
  if (!now) return;
  if (way === "left") return now.parent >= 0 && select(stops[now.parent].node);
  if (way === "right") {
    const after = stops.filter((stop) => stop.parent === index);
    const next = after.find((stop) => stop.passed) || after[0];
    return next && select(next.node);
  }
  const sign = way === "down" ? 1 : -1, beyond = stops.filter((stop) => (stop.row - now.row) * sign > 0);
  const far = (stop) => 1000 * Math.abs(stop.row - now.row) + Math.abs(stop.column - now.column);
  const next = beyond.sort((a, b) => far(a) - far(b))[0];
  if (next) select(next.node);
}

$("map").onkeydown = (event) => {
  event.stopPropagation();  // it means something else where no map is open
  if (event.target === $("nodename")) return;
  const button = event.target.closest("button");
  if (button && !button.classList.contains("stop") && event.key === "Enter") return;
  const way = NAMES[event.key];
  if (event.key === "m") closeMap(false);
  else if (event.key === "Enter") travel(chosen);
  else if (event.key === "n") $("nodename").focus();
  else if (event.key === "k") send({scenario: chosen});
  else if (way && way !== "space") moved(way);
  else return;
  event.preventDefault();
};
$("go").onclick = () => travel(chosen);
$("nameform").onsubmit = (event) => {
  event.preventDefault();
  send({name: $("nodename").value, of: chosen});
  $("nodename").blur();
};
