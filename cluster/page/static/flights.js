// Blocks on their way between two pools: small squares that fly from where they were to where they will be.
"use strict";

const FLIGHT_MS = 700, PAIR_MS = 1500, MAX_FLIGHTS = 240;
const still = matchMedia("(prefers-reduced-motion: reduce)");
// Blocks that have begun to move and have no other end yet: those that were held, and those that were free.
const leaving = [], coming = [];
const flights = [];
let flies = false;

// Called for each block that begins to move. `wasFree`: it is the end that the copy goes to.
function beginsToMove(pool, block, owner, wasFree) {
  const now = performance.now(), mine = { pool, block, owner, now };
  const [same, other] = wasFree ? [coming, leaving] : [leaving, coming];
  while (other.length && now - other[0].now > PAIR_MS) other.shift();
  const at = other.findIndex((one) => one.pool !== pool && (!owner || !one.owner || one.owner === owner));
  if (at < 0) {
    same.push(mine);
    if (same.length > 2000) same.shift();
    return;
  }
  const [found] = other.splice(at, 1);
  if (flights.length < MAX_FLIGHTS && !still.matches) {
    const [from, to] = wasFree ? [found, mine] : [mine, found];
    flights.push({ from, to, began: now + Math.random() * 250 });
    window.flown = (window.flown || 0) + 1;
    if (!flies) { flies = true; requestAnimationFrame(fly); }
  }
}

function middle(end, origin) {
  const box = end.pool.canvas.getBoundingClientRect(), cell = end.pool.cell;
  const x = (end.block % end.pool.columns + 0.5) * cell, y = (Math.floor(end.block / end.pool.columns) + 0.5) * cell;
  return [box.left - origin.left + x, box.top - origin.top + y];
}

function fly(now) {
  const canvas = $("flights"), origin = $("maps").getBoundingClientRect(), scale = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(origin.width * scale) || canvas.height !== Math.round(origin.height * scale)) {
    canvas.width = Math.round(origin.width * scale);
    canvas.height = Math.round(origin.height * scale);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, origin.width, origin.height);
  for (let at = flights.length - 1; at >= 0; at--) {
    const { from, to, began } = flights[at], part = (now - began) / FLIGHT_MS;
    if (part >= 1 || !from.pool.cell || !to.pool.cell) { flights.splice(at, 1); continue; }
    if (part < 0) continue;
    const eased = part * part * (3 - 2 * part), [x0, y0] = middle(from, origin), [x1, y1] = middle(to, origin);
    const x = x0 + (x1 - x0) * eased + Math.sin(part * Math.PI) * 14, y = y0 + (y1 - y0) * eased, side = Math.max(4, from.pool.cell - 2);
    pen.globalAlpha = 0.25 + 0.75 * Math.sin(Math.PI * (0.15 + 0.7 * part));
    pen.fillStyle = colours.mark;
    pen.fillRect(x - side / 2, y - side / 2, side, side);
  }
  pen.globalAlpha = 1;
  flies = flights.length > 0;
  if (flies) requestAnimationFrame(fly);
}
