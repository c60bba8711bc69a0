"use strict";
// The page of `worldmodel serve`: docs/remote.md has the protocol, page_map.js the map.
const VERSION = 2, PAUSES_S = [0.5, 1, 2, 4, 8], SILENCE_S = 8, PAST = 128, STALLED_S = 2;
const small = matchMedia("(max-width: 800px), (max-height: 480px)");
const EMPTY = () => small.matches ? "Say or ask something" : "Enter: say what is to happen, or ask: what is ahead?";
const $ = (id) => document.getElementById(id);
const store = window.sessionStorage;
if (location.hash.length > 1) {  // the token is not to stay in the address line
  store.setItem("token", decodeURIComponent(location.hash.slice(1)));
  history.replaceState(null, "", location.pathname);
}

// The connection

let socket = null, open = false, tries = 0, asked = 0, rtt = null, hello = null, retry = 0;
let state = null, shownSerial = 0, shownAt = 0, inputs = 0, given = new Map(), past = [];
let latencies = [], spent = [], rests = false;

function connect() {
  clearInterval(retry);
  card("Connecting", location.host);
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  socket = new WebSocket(`${scheme}://${location.host}/play`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => socket.send(JSON.stringify({
    hello: VERSION, token: store.getItem("token") || "",
    session: store.getItem("session") || "", start: 0}));
  socket.onmessage = (event) => {
    asked = 0;
    typeof event.data === "string" ? hear(JSON.parse(event.data)) : show(event.data);
  };
  socket.onclose = lost;
}

function hear(message) {
  if (message.welcome) {
    if (message.welcome !== VERSION) return lost({code: 4426});
    open = true; tries = 0; rtt = null; hello = message; shownSerial = 0; past = []; given.clear();
    pictures.clear();
    if (store.getItem("session") && !message.resumed) tell("This is a new session.");
    store.setItem("session", message.session);
    furnish(message);
    card("Waking the model", `${message.model.name} on ${message.model.device}`);
    if (held.size) hold();
    if ($("map").open) send({map: true});
    ping();
  } else if ("pong" in message) {
    rtt = performance.now() - message.pong;
  } else if (message.scenario) {
    save(message.scenario, message.name);
  } else if (message.notice) {
    tell(message.notice);
  }
}

function send(message) {
  if (open) socket.send(JSON.stringify(message));
  else tell("There is no connection.");
}

function input(message) {  // what is to be seen with the next frame
  given.set(++inputs, performance.now());
  send({...message, input: inputs});
}

function ping() {
  if (!open) return;
  asked = asked || performance.now();  // a page in the background has few of these
  send({ping: performance.now()});
}
setInterval(ping, 1000);
setInterval(() => {
  if (open && asked && performance.now() - asked > SILENCE_S * 1000) socket.close();
  figures();
}, 500);

function lost(event) {
  open = false; rtt = null; asked = 0;
  socket.onclose = null;
  socket.close();
  if (event.code === 4401) return askToken(store.getItem("token") ? "That is not the token of this server." : "");
  if (event.code === 4409) return card("Playing elsewhere", "This session goes on in another tab.", "Play here", connect);
  if (event.code === 4426) return card("Another version", "The server was renewed.", "Reload", () => location.reload());
  if (event.code >= 4400 && event.code < 4500) {
    store.removeItem("session");
    return card("Refused", event.reason || "The server refused this page.", "Try again", connect);
  }
  if (event.code === 4503) store.removeItem("session");
  const title = event.code === 4503 ? event.reason.replace(/\.$/, "") : state ? "Connection lost" : "No answer";
  const end = performance.now() + 1000 * PAUSES_S[Math.min(tries++, PAUSES_S.length - 1)];
  const wait = () => {
    const left = Math.ceil((end - performance.now()) / 1000);
    left > 0 ? card(title, `Trying again in ${left} s.`, "Try now", connect) : connect();
  };
  wait();
  retry = setInterval(wait, 250);
}

function askToken(why) {
  card("Token needed", "", "Give the token", () => askToken(""));
  $("askwhy").textContent = why || "The server prints it when it starts.";
  if (!$("ask").open) $("ask").showModal();
}
$("askform").onsubmit = (event) => {
  event.preventDefault();
  store.setItem("token", $("token").value);
  $("token").value = "";
  $("ask").close();
  connect();
};

// A card lies over the picture where there is nothing to play: why, and what can be done.
function card(title, text = "", word = "", act = null) {
  document.body.classList.toggle("away", !!title);
  $("card").classList.toggle("final", !!word);
  $("cardtitle").textContent = title;
  $("cardtext").textContent = text;
  $("cardbutton").hidden = !word;
  $("cardbutton").textContent = word;
  $("cardbutton").onclick = act;
  if (title) badge();
}

// What came

async function show(data) {
  const size = new DataView(data).getUint32(0);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, size)));
  let at = 4 + size;
  const images = await Promise.all(head.images.map((length) => {
    const part = new Uint8Array(data, at, length);
    at += length;
    return createImageBitmap(new Blob([part]));
  }));
  if (open) socket.send(JSON.stringify({got: head.serial}));
  const frames = images.slice(0, 1 + head.futures.length);
  head.pictures.forEach((node, i) => pictures.set(node, images[frames.length + i]));
  if (head.serial < shownSerial) return;
  shownSerial = head.serial;
  const before = state;
  state = head;
  shownAt = performance.now();
  if (head.input !== null && given.has(head.input)) {
    const whole = performance.now() - given.get(head.input), {wait, step, picture} = head.ms;
    latencies = [...latencies, whole].slice(-30);
    const way = Math.max(0, whole - wait - step - picture);
    spent = [...spent, {way, wait, step, picture}].slice(-10);
    for (const number of [...given.keys()]) if (number <= head.input) given.delete(number);
  }
  document.body.classList.toggle("fork", head.futures.length > 0);
  paint($("frame"), frames[0]);
  head.futures.length ? futures(head.futures, frames.slice(1)) : remember(head.now, frames[0]);
  const now = head.futures.length ? null : head.now;
  $("text").textContent = now ? now.text || "nothing yet" : `${head.futures.length} futures side by side: take one`;
  $("text").className = now ? led(now) : "";
  $("kind").textContent = now ? "SENT" : "FORK";
  $("step").textContent = `step ${head.now.number}`;
  $("sentence").placeholder = head.instruction
    ? `${head.instruction}   (Backspace drops it)`
    : EMPTY();
  $("sentence").classList.toggle("holds", !!head.instruction);
  const starts = Math.max(1, hello.model.starts);
  $("about").textContent = `imagined world, start ${head.start % starts + 1} of ${starts}`;
  if (head.answer) {
    $("asked").hidden = false;
    $("askedat").textContent = `Asked at step ${head.answer[0]}`;
    $("question").textContent = head.answer[1];
    $("reply").textContent = head.answer[2] || "(nothing)";
  }
  if (head.notice && head.notice_age_s < 5 && head.notice !== (before && before.notice)) tell(head.notice);
  if (head.failure) card("The model stopped", head.failure, "Start again", () => send({restart: 0}));
  else if (open) card("");
  trust(head.trust);
  figures();
  badge();
  if ($("map").open) chart();
}

function badge() {  // what holds the picture up, where something does
  const away = document.body.classList.contains("away"), playing = state && state.status === "playing";
  const silent = (performance.now() - shownAt) / 1000;
  const slow = playing && hello && state.fps > 0 && state.fps < 0.5 * hello.fps;
  const stalled = playing && !document.hidden && silent > STALLED_S;
  $("badge").textContent = away || !state ? ""
    : state.status === "paused" ? "PAUSED"
    : stalled ? `WAITING FOR THE MODEL, ${silent.toFixed(0)} S`
    : slow ? `SLOW MODEL: ${state.fps.toFixed(1)} OF ${hello.fps} FRAMES/S` : "";
  $("badge").classList.toggle("slow", !!(slow || stalled));
  $("fps").classList.toggle("slow", !!slow);
}

function paint(canvas, picture) {
  if (canvas.width !== picture.width || canvas.height !== picture.height) {
    canvas.width = picture.width; canvas.height = picture.height;
  }
  canvas.getContext("2d").drawImage(picture, 0, 0);
}

function led(moment) { return moment.keys.length ? "keys" : moment.instruction ? "said" : ""; }

function futures(branches, images) {
  const box = $("futures");
  while (box.children.length > branches.length) box.lastChild.remove();
  while (box.children.length < branches.length) {
    const index = box.children.length, tile = element("button", "future");
    const name = element("div", "name");
    name.append(element("kbd", "", index + 1), element("b"), element("span"));
    tile.append(element("canvas"), name, element("small"));
    tile.onclick = () => send({pick: index});
    box.append(tile);
  }
  const aspect = hello.world.width / hello.world.height, room = $("stage").getBoundingClientRect();
  const caption = small.matches ? 44 : 66;
  let best = [0, 1];
  for (let columns = 1; columns <= branches.length; columns++) {
    const rows = Math.ceil(branches.length / columns);
    const width = (room.width - 16 * (columns - 1)) / columns;
    const height = (room.height - 16 * (rows - 1)) / rows - caption;
    best = [Math.min(width, height * aspect), columns].reduce((w, c) => w > best[0] ? [w, c] : best);
  }
  box.style.setProperty("--tile", `${Math.floor(best[0])}px`);
  box.style.gridTemplateColumns = `repeat(${best[1]}, ${Math.floor(best[0])}px)`;
  branches.forEach((branch, i) => {
    const tile = box.children[i], label = branch.say || branch.keys.join("+").toUpperCase();
    tile.className = `future${branch.say ? " said" : ""}${branch.steps ? " begun" : ""}`;
    tile.setAttribute("aria-label", `${i + 1}: ${branch.say ? "" : "hold "}${label}`);
    paint(tile.querySelector("canvas"), images[i]);
    tile.querySelector("b").textContent = label;
    tile.querySelector(".name span").textContent = `+${branch.steps}`;
    tile.querySelector("small").textContent = branch.steps ? branch.now.text : "begins with the next step";
  });
}

function remember(moment, picture) {
  const last = past.at(-1);
  if (last && last.number === moment.number && last.node === moment.node) return;
  past = past.filter((old) => old.number < moment.number);
  const canvas = element("canvas");
  paint(canvas, picture);
  past.push({number: moment.number, node: moment.node, canvas, kind: led(moment)});
  past = spread(past, PAST);
  const room = Math.floor($("past").clientWidth / (55 * picture.width / picture.height + 6));
  $("past").replaceChildren(...spread(past, Math.max(2, room)).map((old) => {
    const button = element("button", old.kind);
    button.tabIndex = -1;  // the comma key goes back as well
    button.title = `step ${old.number}`;
    button.append(old.canvas);
    button.onclick = () => old.number < state.now.number && send({rewind: state.now.number - old.number});
    return button;
  }));
}

function spread(moments, most) {  // over their whole length; a growing row stands still
  const older = moments.slice(0, -1);
  let kept = older;
  for (let stride = 2; kept.length > most - 1; stride *= 2) {
    kept = older.filter((moment) => moment.number % stride === 0);
  }
  return [...kept, moments.at(-1)];
}

const AMBER_ABOVE = 4, RED_ABOVE = 16;  // spreads, as in viewer/reading.py
const LIGHTS = {green: "like real frames", amber: "unsure", red: "not to be trusted"};

function trust(given) {
  $("trust").hidden = !given;
  if (!given) return;
  const reading = given.reading;
  $("light").style.setProperty("--colour", reading ? `var(--${reading.light})` : "var(--faint)");
  $("trustword").textContent = reading ? LIGHTS[reading.light] : given.calibrating ? "calibrating" : "no reading yet";
  $("score").textContent = reading ? `+${reading.score.toFixed(1)} spreads` : "";
  const zone = reading ? Object.keys(LIGHTS).indexOf(reading.light) : -1;
  [...$("meter").querySelectorAll("i")].forEach((part, i) => part.classList.toggle("lit", i === zone));
  const place = !reading ? 0 : reading.score <= AMBER_ABOVE ? reading.score / AMBER_ABOVE / 3
    : Math.min(1, (1 + Math.log(reading.score / AMBER_ABOVE) / Math.log(RED_ABOVE / AMBER_ABOVE)) / 3);
  $("meter").lastElementChild.hidden = !reading;
  $("meter").lastElementChild.style.left = `calc(${(100 * place).toFixed(1)}% - ${3 * place}px)`;
  const top = Math.max(2, ...given.trend), height = (drift) => (24 - 23 * drift / top).toFixed(1);
  $("line").setAttribute("points", given.trend.map((drift, i) => `${i},${height(drift)}`).join(" "));
  for (const end of ["y1", "y2"]) $("real").setAttribute(end, height(1));
  $("obeyed").textContent = given.obeyed ? `${given.obeyed[0]} of ${given.obeyed[1]} keys obeyed` : "";
  $("seen").textContent = given.obeyed ? `told ${given.obeyed[2]}, saw ${given.obeyed[3]}` : "";
  $("seen").classList.toggle("wrong", !!given.obeyed && given.obeyed[2] !== given.obeyed[3]);
  $("drift").textContent = given.trend.length ? `drift, ${given.trend.at(-1).toFixed(1)} times a real clip's` : "drift";
}

function figures() {
  const middle = [...latencies].sort((a, b) => a - b)[latencies.length >> 1];
  $("fps").textContent = state && open ? state.fps.toFixed(1) : "-";
  $("latency").textContent = middle === undefined ? "-" : Math.round(middle);
  $("rtt").textContent = rtt === null ? "-" : Math.round(rtt);
  $("brief").textContent = state && open ? `${state.fps.toFixed(0)} fps, ${$("latency").textContent} ms` : "";
  $("stages").hidden = !spent.length;
  if (spent.length) {
    const mean = (name) => spent.reduce((sum, one) => sum + one[name], 0) / spent.length;
    const parts = ["way", "wait", "step", "picture"].map((name) => [name, mean(name)]);
    $("bar").replaceChildren(...parts.map(([, ms]) => {
      const part = element("i");
      part.style.flexGrow = ms;
      return part;
    }));
    $("stagetext").textContent = parts.map(([name, ms]) => `${name} ${Math.round(ms)}`).join(", ") + " ms";
  }
  badge();
}

let noticeTimer = 0;
function tell(words) {
  $("notice").textContent = words;
  clearTimeout(noticeTimer);
  if (words) noticeTimer = setTimeout(() => $("notice").textContent = "", 5000);
}

function element(tag, kind = "", text = "") {
  const made = document.createElement(tag);
  made.className = kind;
  made.textContent = text;
  return made;
}

function save(scenario, name) {  // JSON is YAML as well
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(scenario, null, 1)], {type: "text/yaml"}));
  link.download = `${name.replace(/[^\p{L}\p{N}]+/gu, "-")}.yaml`;
  link.click();
  URL.revokeObjectURL(link.href);
  tell(`Kept the ${scenario.steps} steps to this frame: ${link.download}`);
}

function furnish(message) {
  const {model, world} = message;
  document.title = `${model.name} - worldmodel`;
  $("name").textContent = model.name;
  const threads = model.threads ? `, ${model.threads} thread${model.threads > 1 ? "s" : ""}` : "";
  $("device").textContent = `${model.device}, ${model.dtype}${threads}, at ${location.host}`;
  document.body.style.setProperty("--aspect", world.width / world.height);
  $("phrases").replaceChildren(...model.phrases.map((phrase) => {
    const option = element("option");
    option.value = phrase;
    return option;
  }));
  const places = {up: "1/2", left: "2/1", down: "2/2", right: "2/3"}, corners = ["1/1", "1/3"];  // fingers' pads
  const ways = Object.fromEntries(Object.entries(message.ways).map(([way, key]) => [key, way]));
  $("keys").replaceChildren(...world.actions.map((row) => {
    const button = element("button", "key");
    button.tabIndex = -1;  // the keyboard has these keys itself
    button.dataset.key = row.key;
    button.style.setProperty("--place", places[ways[row.key]] || corners.shift() || "auto");
    button.append(element("kbd", "", row.key.toUpperCase()), row.name.length > 1 ? row.name : row.meaning);
    button.onpointerdown = (event) => {
      event.preventDefault();
      if (state && state.futures.length) return toggle(row.key);
      button.setPointerCapture(event.pointerId);
      held.set(button, row.key); hold();
    };
    button.onpointerup = button.onpointercancel = () => { if (held.delete(button)) hold(); };
    button.oncontextmenu = (event) => event.preventDefault();  // a long press is none
    return button;
  }));
}

// What is asked for

const held = new Map();  // what is pressed, a key or a button, to the world's key
const pictures = new Map();  // small ones by node, for the map

function hold() {
  const keys = [...new Set(held.values())];
  for (const button of $("keys").children) {
    button.classList.toggle("held", keys.includes(button.dataset.key));
  }
  if (open) input({hold: keys});
}

function branches() {
  return state.futures.map((future) => future.say ? {say: future.say} : {keys: future.keys});
}

function fork() {
  if (!state) return;
  held.clear(); hold();
  if (state.futures.length) return send({fork: branches()});
  let keys = ["up", "left", "right"].filter((way) => way in hello.ways).map((way) => hello.ways[way]);
  if (keys.length < 2) keys = hello.world.actions.slice(0, 3).map((row) => row.key);
  const wanted = [...new Set(keys)].map((key) => ({keys: [key]}));
  if (state.instruction) wanted.push({say: state.instruction});
  send({fork: wanted});
}

function toggle(key) {
  const now = branches(), without = now.filter((one) => !one.keys || one.keys.join() !== key);
  send({fork: without.length < now.length ? without : [...now, {keys: [key]}]});
}

$("say").onsubmit = (event) => {
  event.preventDefault();
  const words = $("sentence").value.trim();
  $("sentence").value = "";
  $("sentence").blur();
  if (words.endsWith("?")) send({ask: words});
  else if (!state || !state.futures.length) input({say: words});
  else if (words) send({fork: [...branches(), {say: words}]});
};

const COMMANDS = [
  ["say", ["Enter", "/"], "Enter", "", "say what is to happen, or ask with ?", () => $("sentence").focus()],
  ["clear", ["Backspace"], "Backspace", "", "drop the instruction", () => clear()],
  ["pause", [" "], "Space", "pause", "pause, go on", () => send({pause: null})],
  ["step", ["."], ".", "step", "one single step", () => { send({pause: true}); input({step: [...held.values()]}); }, true],
  ["back", [",", "["], ",", "back", "one step back in time", () => send({rewind: 1}), true],
  ["fork", ["f"], "F", "fork", "futures side by side; 1-9 takes one", fork],
  ["leave", ["Escape"], "Esc", "leave", "back to where the futures began", () => state.futures.length && send({leave: true})],
  ["map", ["m"], "M", "map", "map of all futures", () => openMap()],
  ["restart", ["r"], "R", "restart", "start again from the same place", () => send({restart: 0})],
  ["next", ["n"], "N", "next", "next start", () => send({restart: 1})],
  ["previous", ["p"], "P", "", "previous start", () => send({restart: -1})],
  ["save", ["k"], "K", "keep", "keep this path as a scenario file", () => send({scenario: null})],
  ["smooth", ["x"], "X", "", "smooth or sharp pixels", () => document.body.classList.toggle("sharp")],
  ["full", ["F11"], "F11", "", "full screen", () => document.fullscreenElement
    ? document.exitFullscreen() : document.documentElement.requestFullscreen()],
  ["help", ["h", "?", "F1"], "H", "help", "this help", () => $("help").showModal()],
].map(([name, keys, label, word, meaning, act, repeats]) => ({name, keys, label, word, meaning, act, repeats}));

function clear() {
  if (!state || !state.futures.length) return input({say: ""});
  send({fork: branches().filter((one) => one.keys)});
}

$("commands").append(...COMMANDS.filter((one) => one.word).map((one) => {
  const button = element("button", {leave: "onlyfork", step: "nofork"}[one.name] || "");
  button.tabIndex = -1;
  button.append(element("kbd", "", one.label), element("span", "", one.word));
  button.onclick = () => { one.act(); button.blur(); };
  return button;
}));
$("helplist").append(...COMMANDS.flatMap((one) => {
  const term = element("dt");
  term.append(element("kbd", "", one.label));
  return [term, element("dd", "", one.meaning)];
}));

const NAMES = {ArrowUp: "up", ArrowDown: "down", ArrowLeft: "left", ArrowRight: "right", " ": "space"};

document.onkeydown = (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog[open]")) return;
  if (event.target === $("sentence")) {
    if (event.key === "Escape") $("sentence").blur();
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = hello && hello.keys[NAMES[key] || key];
  const forked = state && state.futures.length > 0;
  const command = COMMANDS.find((one) => one.keys.includes(key));
  const button = event.target.closest("button");
  if (button && (key === "Enter" || key === " ")) return;  // it is pressed
  if (!open) { if (key === "r" && !$("cardbutton").hidden) $("cardbutton").click(); }
  else if (forked && /^[1-9]$/.test(key)) send({pick: Number(key) - 1});
  else if (action && forked) { if (!event.repeat) toggle(action); }
  else if (action) { if (!event.repeat) { held.set(event.code, action); hold(); } }
  else if (command) { if (!event.repeat || command.repeats) command.act(); }
  else return;
  event.preventDefault();
};
document.onkeyup = (event) => { if (held.delete(event.code)) hold(); };
window.onblur = () => { if (held.size) { held.clear(); hold(); } };
document.onvisibilitychange = () => {  // nobody looks: the model is for the others
  if (document.hidden) window.onblur();
  const playing = state && state.status === "playing";
  if (open && document.hidden ? playing : rests) send({pause: document.hidden});
  rests = document.hidden && !!playing;
};
$("sentence").placeholder = EMPTY();
addEventListener("DOMContentLoaded", connect);  // page_map.js is there by then
