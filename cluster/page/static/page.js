// The page: keeps the map that events tell, and draws what changed. Numbers are shown, never computed here.
"use strict";

const STATES = ["", "free", "held", "shared", "cached", "moving", "quarantined"];
const MEANINGS = ["", "nobody holds it", "in one table", "in several tables", "kept for a prompt that begins so",
  "on its way to or from another pool", "given back, not free yet"];
const MOVING = 5, FLASH_MS = 1200;
const $ = (id) => document.getElementById(id);
const key = location.hash.slice(1);
const pools = new Map();
const reasons = new Map();
let byRequest = false, colours = [], speeds = [], last = null;
// Milliseconds of script that each event took, for whoever measures.
window.took = [];

function readColours() {
  const style = getComputedStyle(document.documentElement);
  colours = STATES.map((_, at) => style.getPropertyValue(`--s${at}`).trim() || "#000");
  colours.mark = style.getPropertyValue("--mark").trim();
  colours.text = style.getPropertyValue("--text").trim();
}

function hue(name) {
  let hash = 7;
  for (let at = 0; at < name.length; at++) hash = (hash * 31 + name.charCodeAt(at)) >>> 0;
  return `hsl(${hash % 360} 62% ${48 + (hash >> 9) % 14}%)`;
}

class Pool {
  constructor(name) {
    this.name = name;
    this.states = new Uint8Array(0);
    this.owners = [];
    this.hues = new Map();
    this.dirty = new Set();
    this.flashes = new Map();
    this.chosen = -1;
    const figure = document.createElement("figure");
    figure.innerHTML = "<figcaption><span></span><span></span></figcaption><canvas tabindex=0 role=img></canvas>";
    [this.title, this.counts] = figure.querySelectorAll("span");
    this.canvas = figure.querySelector("canvas");
    this.canvas.setAttribute("aria-label", `blocks of ${name}`);
    this.figure = figure;
    this.pen = this.canvas.getContext("2d");
    this.title.textContent = name;
    $("maps").append(figure);
    this.canvas.addEventListener("pointermove", (event) => this.choose(this.at(event)));
    this.canvas.addEventListener("click", (event) => { this.choose(this.at(event)); showTables(this.owners[this.chosen]); });
    this.canvas.addEventListener("keydown", (event) => this.pressed(event));
    new ResizeObserver(() => this.layOut()).observe(figure);
  }

  take(told) {
    const names = ["", ...told.requests];
    if (told.whole) {
      this.states = Uint8Array.from(told.states, (digit) => digit.charCodeAt(0) - 48);
      this.owners = told.owners.map((number) => names[number]);
      this.layOut();
      return;
    }
    const now = performance.now();
    told.blocks.forEach((block, at) => {
      const state = told.states.charCodeAt(at) - 48;
      if (state === MOVING && this.states[block] !== MOVING) {
        this.flashes.set(block, now);
        beginsToMove(this, block, names[told.owners[at]] || this.owners[block] || "", this.states[block] === 1);
      }
      this.states[block] = state;
      this.owners[block] = names[told.owners[at]] || "";
      this.dirty.add(block);
    });
  }

  layOut() {
    const width = this.figure.clientWidth, num = this.states.length;
    if (!width || !num) return;
    const scale = window.devicePixelRatio || 1;
    const wanted = Math.sqrt(width * Math.min(330, 40 + num * 0.09) / num);
    this.cell = Math.max(4, Math.min(15, Math.floor(wanted)));
    this.columns = Math.floor(width / this.cell);
    const height = Math.ceil(num / this.columns) * this.cell;
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    this.canvas.style.height = `${height}px`;
    this.pen.setTransform(scale, 0, 0, scale, 0, 0);
    for (let block = 0; block < num; block++) this.draw(block);
    this.dirty.clear();
  }

  colour(block) {
    const state = this.states[block], owner = this.owners[block];
    if (!byRequest || !owner) return colours[state];
    if (!this.hues.has(owner)) this.hues.set(owner, hue(owner));
    return this.hues.get(owner);
  }

  draw(block) {
    const x = (block % this.columns) * this.cell, y = Math.floor(block / this.columns) * this.cell;
    const side = this.cell - (this.cell > 5 ? 1.5 : 1), pen = this.pen;
    pen.clearRect(x, y, this.cell, this.cell);
    pen.fillStyle = this.colour(block);
    pen.fillRect(x, y, side, side);
    if (this.states[block] === 3 && byRequest) {
      pen.fillStyle = colours.text;
      pen.fillRect(x + side / 2 - 1, y + side / 2 - 1, 2, 2);
    }
    if (this.flashes.has(block) || block === this.chosen) {
      pen.strokeStyle = block === this.chosen ? colours.text : colours.mark;
      pen.lineWidth = 1.5;
      pen.strokeRect(x + 0.75, y + 0.75, side - 1.5, side - 1.5);
    }
  }

  drawNews() {
    const now = performance.now();
    for (const [block, began] of this.flashes) {
      if (now - began > FLASH_MS) { this.flashes.delete(block); this.dirty.add(block); }
    }
    for (const block of this.dirty) this.draw(block);
    this.dirty.clear();
    const counts = new Array(7).fill(0);
    for (const state of this.states) counts[state]++;
    const said = counts.map((count, state) => count ? `${count.toLocaleString("en")} ${STATES[state]}` : "");
    this.counts.textContent = said.filter(Boolean).join(" · ");
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / this.cell);
    const block = Math.floor((event.clientY - box.top) / this.cell) * this.columns + column;
    return column < this.columns && block < this.states.length ? block : -1;
  }

  choose(block) {
    const before = this.chosen;
    this.chosen = block;
    for (const one of [before, block]) if (one >= 0) this.draw(one);
    if (block < 0) return;
    const state = this.states[block], owner = this.owners[block];
    const why = reasons.get(owner);
    $("told").textContent = `${this.name} block ${block.toLocaleString("en")}: ${STATES[state]}, ${MEANINGS[state]}`
      + (owner ? ` · ${owner}` : "") + (why ? ` · ${why}` : "");
  }

  pressed(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns }[event.key];
    if (step !== undefined) {
      event.preventDefault();
      this.choose(Math.max(0, Math.min(this.states.length - 1, Math.max(0, this.chosen) + step)));
    } else if (event.key === "Enter") showTables(this.owners[this.chosen]);
  }
}

async function showTables(request) {
  const shown = $("tables");
  shown.hidden = !request;
  if (!request) return;
  const answer = await fetch(`/tables?key=${key}&request=${encodeURIComponent(request)}`);
  const found = await answer.json();
  if (found.error) { shown.textContent = found.error; return; }
  const lines = [`${request}  attempt ${found.attempt}  ${found.cached_tokens} tokens were there`];
  for (const one of found.sequences) {
    lines.push(`sequence ${one.index}: position ${one.position}, lease to ${one.lease_end}, ${one.pool}`);
    lines.push(`  ${one.blocks.map((block, at) => block + (one.holders[at] > 1 ? `×${one.holders[at]}` : "")).join(" ")}`);
  }
  shown.textContent = lines.join("\n");
}

// Writes rows into a table's body, cell by cell, so that what stays is not touched.
function fill(id, rows, choose) {
  const body = $(id).tBodies[0];
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((cells, at) => {
    let row = body.rows[at];
    if (!row) {
      row = body.insertRow();
      cells.forEach((_, column) => { row.insertCell().className = $(id).tHead.rows[0].cells[column].className; });
      if (choose) {
        row.tabIndex = 0;
        row.addEventListener("click", () => choose(row.cells[0].textContent));
        row.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(row.cells[0].textContent); });
      }
    }
    cells.forEach((text, column) => {
      const shown = String(text);
      if (row.cells[column].textContent !== shown) row.cells[column].textContent = shown;
    });
  });
}

const number = (value) => Math.round(value).toLocaleString("en");

function takeMap(told) {
  for (const name of told.gone) { pools.get(name)?.figure.remove(); pools.delete(name); }
  for (const part of told.pools) {
    if (!pools.has(part.pool)) pools.set(part.pool, new Pool(part.pool));
    pools.get(part.pool).take(part);
  }
  for (const pool of pools.values()) pool.drawNews();
}

function takeLists(told) {
  const now = performance.now();
  if (last) speeds.push(Math.max(0, told.tokens - last.tokens) / ((now - last.at) / 1000));
  speeds = speeds.slice(-60);
  last = { tokens: told.tokens, at: now };
  const lately = speeds.slice(-3);
  if (lately.length) $("speed").textContent = number(lately.reduce((sum, one) => sum + one, 0) / lately.length);
  $("running").textContent = number(told.running);
  $("waiting").textContent = number(told.waiting);
  $("num-workers").textContent = number(told.workers.length);
  $("left-out").textContent = told.left_out ? `and ${number(told.left_out)} more` : "";
  reasons.clear();
  for (const one of told.requests) if (one[7]) reasons.set(one[0], one[7]);
  fill("requests", told.requests.map((one) => [one[0], one[2], one[3], one[4], one[5], one[6], one[7]]), showTables);
  fill("workers", told.workers.map((one) => [one.name + (one.draining ? " (draining)" : ""), one.model,
    `${one.num_sequences}/${one.max_batch}`, number(one.num_free), (one.step_s * 1000).toFixed(1)]));
  fill("tenants", told.tenants.map((one) => [one.tenant, number(one.num_requests),
    number(one.prompt_tokens + one.output_tokens), number(one.device_block_seconds)]));
  const list = $("notes");
  list.replaceChildren(...told.notes.slice(-12).reverse().map(([, age, kind, subject, why]) => {
    const item = document.createElement("li"), strong = document.createElement("b");
    strong.textContent = kind;
    item.append(`${number(age)} s ago `, strong, ` ${subject}${why ? `: ${why}` : ""}`);
    return item;
  }));
  for (const [name, isHost] of Object.entries(told.pools)) {
    if (pools.has(name)) pools.get(name).title.textContent = `${name}${isHost ? " · host memory" : ""}`;
  }
  takePlay(told);
  drawTrace();
}

function drawTrace() {
  const canvas = $("trace"), scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const most = Math.max(1, ...speeds);
  pen.beginPath();
  speeds.forEach((one, at) => pen.lineTo(width - (speeds.length - 1 - at) * width / 60, height - 3 - one / most * (height - 6)));
  pen.strokeStyle = colours.mark;
  pen.lineWidth = 1.5;
  pen.stroke();
}

function begin() {
  readColours();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColours(); legend(); redraw(); });
  legend();
  const toggle = () => {
    byRequest = !byRequest;
    $("by-request").setAttribute("aria-pressed", byRequest);
    redraw();
  };
  $("by-request").addEventListener("click", toggle);
  document.addEventListener("keydown", (event) => { if (event.key === "r" && !event.ctrlKey && !event.metaKey && !event.target.closest("form")) toggle(); });
  const events = new EventSource(`/events?key=${key}`);
  const timed = (take) => (event) => {
    const began = performance.now();
    take(JSON.parse(event.data));
    window.took.push(performance.now() - began);
    if (window.took.length > 1000) window.took.shift();
  };
  events.addEventListener("map", timed(takeMap));
  events.addEventListener("lists", timed(takeLists));
  const lost = (why) => { $("lost").hidden = !why; $("lost").textContent = why; };
  events.addEventListener("lost", (event) => lost(JSON.parse(event.data).why));
  events.addEventListener("open", () => lost(""));
  events.addEventListener("error", () => lost(key ? "The page's server does not answer; trying again."
    : "Open the address that `quire page` printed: it has the key."));
}

function legend() {
  $("legend").replaceChildren(...STATES.slice(1).map((name, at) => {
    const item = document.createElement("span"), dot = document.createElement("i");
    dot.style.background = colours[at + 1];
    item.title = MEANINGS[at + 1];
    item.append(dot, name);
    return item;
  }));
}

function redraw() {
  for (const pool of pools.values()) pool.layOut();
}

document.addEventListener("DOMContentLoaded", begin);
