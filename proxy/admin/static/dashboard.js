// Draws the sections from /-/events. All values are set as text, never as markup: names come from untrusted sources.
"use strict";

const find = (id) => document.getElementById(id);
const LETTERS = { o: "origin", p: "peer", "#": "before", "-": "active", ".": "missing" };
const SAMPLES = 180; // one a second: about three minutes
const canAct = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname) || location.hostname.endsWith(".localhost");

function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let power = 0;
  while (bytes >= 999.5 && power < units.length - 1) { bytes /= 1000; power += 1; }
  return `${power ? Number(bytes.toPrecision(3)) : Math.round(bytes)} ${units[power]}`;
}

function text(id, value) {
  const element = find(id);
  if (element.textContent !== value) element.textContent = value;
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// --- lists: elements are reused for items that stay, which keeps focus and scroll position

function renew(parent, items, key, create, update) {
  const known = new Map(Array.from(parent.children, (child) => [child.dataset.key, child]));
  let previous = null;
  for (const item of items) {
    const name = key(item);
    let element = known.get(name);
    if (element) known.delete(name);
    else { element = create(item); element.dataset.key = name; }
    update(element, item);
    const place = previous ? previous.nextSibling : parent.firstChild;
    if (element !== place) parent.insertBefore(element, place);
    previous = element;
  }
  for (const element of known.values()) element.remove();
}

// --- colours are read from the style sheet, so that light and dark mode are defined in one place

let palette = {};
function readPalette() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["origin", "peer", "before", "active", "missing", "out", "line", "quiet"]) {
    palette[name] = style.getPropertyValue(`--${name}`).trim();
  }
}

function prepare(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  return pen;
}

// --- piece maps: one cell for each piece; with more pieces, cells are smaller and gaps narrower

function drawPieces(canvas, runs) {
  const pieces = [];
  for (const [, count, letter] of runs.matchAll(/(\d+)([-op#.])/g)) pieces.push([Number(count), LETTERS[letter]]);
  const total = pieces.reduce((sum, [count]) => sum + count, 0);
  const width = canvas.clientWidth || 600;
  const cell = Math.max(3, Math.min(18, Math.floor(Math.sqrt((width * 140) / Math.max(1, total)))));
  const columns = Math.max(1, Math.floor(width / cell));
  const height = Math.ceil(total / columns) * cell;
  canvas.style.height = `${height}px`;
  const pen = prepare(canvas, width, height);
  const side = cell > 5 ? cell - 1 : cell > 3 ? cell - 0.5 : cell;
  let index = 0;
  for (const [count, kind] of pieces) {
    pen.fillStyle = palette[kind];
    // When cells touch, draw each row of a run as one rectangle instead of cell by cell.
    for (let end = index + count; index < end;) {
      const column = index % columns;
      const here = Math.min(end - index, columns - column);
      const y = Math.floor(index / columns) * cell;
      if (side === cell) pen.fillRect(column * cell, y, here * cell, cell);
      else for (let i = 0; i < here; i += 1) pen.fillRect((column + i) * cell, y, side, side);
      index += here;
    }
  }
}

function showDownloads({ count, shown }) {
  text("downloads-count", count > shown.length ? `${shown.length} of ${count}` : count ? `${count}` : "");
  find("no-downloads").hidden = count > 0;
  renew(find("downloads"), shown, (d) => d.digest,
    () => make("div", { className: "download" },
      make("p", {}, make("span", { className: "name" }), make("span", { className: "detail" })),
      make("canvas", { role: "img" })),
    (element, d) => {
      const [name, detail] = element.firstChild.children;
      const canvas = element.lastChild;
      const percent = d.size ? Math.floor((100 * d.have) / d.size) : 0;
      name.textContent = d.name.replace(/^models\//, "");
      detail.textContent = `${percent} % of ${size(d.size)}, ${d.readers} reading`
        + (d.sources ? `, from ${d.sources} ${d.sources === 1 ? "source" : "sources"}` : "");
      canvas.setAttribute("aria-label", `${percent} % of the pieces of ${d.name} are here`);
      if (canvas.dataset.pieces === d.pieces && canvas.dataset.width === String(canvas.clientWidth)) return;
      canvas.dataset.pieces = d.pieces;
      // The canvas has a size only once it is in the page.
      requestAnimationFrame(() => { canvas.dataset.width = String(canvas.clientWidth); drawPieces(canvas, d.pieces); });
    });
}

// --- traffic and its speed

const samples = [];
let last = null;

function showTraffic(now) {
  const delivered = now.clients + now.sent;
  const saved = delivered ? Math.max(0, 1 - now.origin / delivered) : null;
  const percent = saved === null ? "–" : `${(Math.floor(saved * 1000) / 10).toFixed(1)} %`;
  text("saved", percent);
  text("origin", size(now.origin));
  text("from-peers", size(now.peers));
  text("clients", size(now.clients));
  text("to-peers", size(now.sent));
  if (last && now.at > last.at && now.origin >= last.origin) {
    const seconds = now.at - last.at;
    samples.push({
      origin: (now.origin - last.origin) / seconds,
      peer: (now.peers - last.peers) / seconds,
      out: (now.clients + now.sent - last.clients - last.sent) / seconds,
    });
    if (samples.length > SAMPLES) samples.shift();
  }
  last = now;
  drawSpeed();
}

function drawSpeed() {
  const canvas = find("speed");
  const [width, height] = [canvas.clientWidth || 600, canvas.clientHeight || 120];
  const pen = prepare(canvas, width, height);
  const top = Math.max(1e5, ...samples.map((s) => Math.max(s.origin + s.peer, s.out)));
  const shown = Math.max(30, samples.length); // fewer than 30 samples do not fill the width
  const x = (i) => width - ((samples.length - 1 - i) * width) / (shown - 1);
  const y = (speed) => height - 1 - (speed / top) * (height - 16);
  const area = (upper, lower, colour) => {
    if (samples.length < 2) return;
    pen.fillStyle = colour;
    pen.beginPath();
    samples.forEach((s, i) => pen.lineTo(x(i), y(upper(s))));
    for (let i = samples.length - 1; i >= 0; i -= 1) pen.lineTo(x(i), y(lower(samples[i])));
    pen.fill();
  };
  area((s) => s.origin, () => 0, palette.origin);
  area((s) => s.origin + s.peer, (s) => s.origin, palette.peer);
  pen.strokeStyle = palette.out;
  pen.lineWidth = 1.5;
  pen.beginPath();
  samples.forEach((s, i) => pen.lineTo(x(i), y(s.out)));
  pen.stroke();
  pen.fillStyle = palette.line;
  pen.fillRect(0, height - 1, width, 1);
  pen.fillStyle = palette.quiet;
  pen.font = "12px system-ui, sans-serif";
  pen.fillText(`${size(top)}/s`, 2, 12);
  const now = samples[samples.length - 1];
  if (now) text("speed-now", `now ${size(now.origin + now.peer)}/s in, ${size(now.out)}/s out`);
}

// --- node, peers, findings and repositories

function showNode(node) {
  text("node", `${node.role} ${node.id.slice(0, 8)} · ${node.version} · ${node.ready ? "ready" : `not ready: ${node.reason}`}`);
  find("node").title = node.id;
  text("disk", `${size(node.used)} of ${size(node.limit)}`);
}

function showPeers(peers) {
  const alive = peers.filter((peer) => peer[3]).length;
  text("peers-count", peers.length ? `${alive} alive` + (alive < peers.length ? `, ${peers.length - alive} gone` : "") : "");
  find("no-peers").hidden = peers.length > 0;
  renew(find("peers"), peers, (peer) => peer[0], () => make("li"), (element, [id, address, role, isAlive]) => {
    const shown = `${address} · ${id.slice(0, 8)}`;
    if (element.textContent !== shown) element.textContent = shown;
    element.className = `${isAlive ? "alive" : "gone"} ${role}`;
    element.title = `${id}, ${role}, ${isAlive ? "alive" : "does not answer"}`;
  });
}

function showFindings(findings) {
  const shown = findings.length ? findings : [{ level: "good", what: "Nothing to complain about.", cure: "" }];
  renew(find("findings"), shown, (f) => f.what, () => make("li", {}, make("b"), " ", make("span")), (element, f) => {
    element.className = f.level;
    element.children[0].textContent = f.what;
    element.children[1].textContent = f.cure ? `→ ${f.cure}` : "";
  });
}

function showRepositories(repositories) {
  text("repositories-count", repositories.length ? `${repositories.length}` : "");
  find("no-repositories").hidden = repositories.length > 0;
  find("repositories").hidden = repositories.length === 0;
  renew(find("repositories").tBodies[0], repositories, (r) => r.name, createRow, (row, r) => {
    const [name, files, bytes, actions] = row.cells;
    const shown = r.name.replace(/^models\//, "") || "of no known name";
    if (name.textContent !== shown) name.textContent = shown;
    files.textContent = r.files;
    bytes.textContent = r.have < r.size ? `${size(r.have)} of ${size(r.size)}` : size(r.size);
    const pin = actions.firstChild;
    if (!pin) return;
    pin.setAttribute("aria-pressed", String(r.pinned));
    pin.textContent = r.pinned ? "pinned" : "pin";
  });
}

function createRow(repository) {
  const cell = () => make("td");
  const actions = cell();
  if (repository.name) {
    const name = repository.name;
    const title = canAct ? "" : "Only from the node's own machine";
    const pin = make("button", { type: "button", disabled: !canAct, title });
    pin.setAttribute("aria-label", `pin ${name}`);
    pin.addEventListener("click", () => act(pin, pin.getAttribute("aria-pressed") === "true" ? "unpin" : "pin", name));
    const remove = make("button", { type: "button", disabled: !canAct, title, textContent: "remove" });
    remove.setAttribute("aria-label", `remove ${name}`);
    remove.addEventListener("click", () => {
      if (remove.classList.toggle("sure")) {
        remove.textContent = "sure?";
        setTimeout(() => { remove.classList.remove("sure"); remove.textContent = "remove"; }, 4000);
      } else {
        remove.textContent = "remove";
        act(remove, "rm", name);
      }
    });
    actions.append(pin, remove);
  }
  return make("tr", {}, cell(), cell(), cell(), actions);
}

async function act(button, action, repo) {
  if (button.getAttribute("aria-busy") === "true") return;
  button.setAttribute("aria-busy", "true"); // not disabled: that would take away the focus
  try {
    const answer = await fetch(action, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ repo }),
    });
    const said = await answer.json();
    const done = { pin: `pinned ${said.files} files of`, unpin: `unpinned ${said.files} files of`, rm: `freed ${size(said.bytes || 0)} of` };
    const kept = [
      said.pinned ? `; files kept because a pinned repository contains them: ${said.pinned}` : "",
      said.in_use ? `; files kept because they are being read or downloaded: ${said.in_use}. Try again later` : "",
    ].join("");
    text("said", answer.ok ? `${done[action]} ${repo}${kept}` : said.error);
  } catch (error) {
    text("said", `the node does not answer: ${error.message}`);
  } finally {
    button.removeAttribute("aria-busy");
  }
}

const SHOW = {
  node: showNode, traffic: showTraffic, downloads: showDownloads, peers: showPeers, findings: showFindings,
  repositories: showRepositories,
};

function listen() {
  const events = new EventSource("events");
  for (const [name, show] of Object.entries(SHOW)) {
    events.addEventListener(name, (event) => show(JSON.parse(event.data)));
  }
  events.onopen = () => { find("link").className = ""; text("link", "live"); };
  events.onerror = () => {
    find("link").className = "lost";
    text("link", "the node does not answer");
    // Browsers reconnect by themselves, unless the stream was closed for good.
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  };
}

readPalette();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", readPalette);
text("endpoint", location.origin);
listen();
