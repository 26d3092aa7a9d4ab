"use strict";
// One row a module: [id, directory below modules/, versions], the newest version first, each
// [file name, updated (ms), size, size here, tokens, type, keywords, pack below packs/ that has it].
const FILE = 0, UPDATED = 1, SIZE = 2, STORED = 3, TOKENS = 4, TYPE = 5, WORDS = 6, PACK = 7;
const SHOWN_MAX = 500, TEXT_MAX = 1 << 20;
const byId = new Map();
const $ = (id) => document.getElementById(id);

function el(tag, text, properties = {}) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) made.textContent = text;
  return made;
}

function size(bytes) {
  if (bytes === undefined || bytes === null || bytes === "") return "";
  for (const unit of ["B", "kB", "MB"]) {
    if (bytes < 1000) return `${unit === "B" ? bytes : bytes.toPrecision(3)} ${unit}`;
    bytes /= 1000;
  }
  return `${bytes.toFixed(1)} GB`;
}

const when = (ms) => (ms ? new Date(ms).toISOString().slice(0, 16).replace("T", " ") : "");
const isDeleted = (version) => version[FILE].endsWith(".deleted");
const link = (text, hash) => el("a", text, { href: `#${hash}` });
const folder = (prefix) => `in=${encodeURIComponent(prefix)}`;
const moduleHash = (id) => `id=${encodeURIComponent(id)}`;
const names = (directory) => directory.split("/").map(encodeURIComponent).join("/");
const number = (version) => version[FILE].slice(1).split("-").slice(0, 2).map(Number).join("-");
const address = (row, version) =>
  version[PACK] ? `packs/${names(version[PACK])}.tar.xz` : `modules/${names(row[1])}/${names(version[FILE])}`;
const objectName = (row, version) => decodeURIComponent(address(row, version)).split("/").pop();

function table(heads, rows) {
  const head = el("tr");
  for (const [text, kind] of heads) head.append(el("th", text, { className: kind, scope: "col" }));
  const made = el("table");
  const thead = el("thead");
  thead.append(head);
  const body = el("tbody");
  for (const cells of rows) {
    const tr = el("tr");
    cells.forEach((cell, i) => {
      const td = el("td", undefined, { className: heads[i][1] });
      td.append(cell);
      tr.append(td);
    });
    body.append(tr);
  }
  made.append(thead, body);
  const scroll = el("div", undefined, { className: "scroll" });
  scroll.append(made);
  return scroll;
}

const HEADS = [["Name", "id"], ["Versions", "n"], ["Size", "n"], ["Stored", "n"], ["Written", "when"]];

function moduleCells(row, name) {
  const newest = row[2][0];
  const gone = isDeleted(newest) ? " (deleted)" : "";
  return [link(name + gone, moduleHash(row[0])), String(row[2].length), size(newest[SIZE]), size(newest[STORED]), when(newest[UPDATED])];
}

function path(prefix) {
  const made = $("path");
  made.replaceChildren(link("all modules", folder("")));
  let so_far = "";
  for (const part of prefix.split("/").slice(0, -1)) {
    so_far += `${part}/`;
    made.append(" / ", link(part, folder(so_far)));
  }
}

function more(total) {
  return total > SHOWN_MAX ? [el("p", `${SHOWN_MAX} of ${total} are shown. Search for words, or open a folder.`, { className: "note" })] : [];
}

function showFolder(prefix) {
  path(prefix);
  const folders = new Map(), modules = [];
  for (const row of byId.values()) {
    if (!row[0].startsWith(prefix)) continue;
    const rest = row[0].slice(prefix.length);
    const cut = rest.indexOf("/");
    if (cut < 0) {
      modules.push(row);
      continue;
    }
    const name = rest.slice(0, cut + 1);
    const sum = folders.get(name) ?? { count: 0, versions: 0, size: 0, stored: 0, updated: 0 };
    folders.set(name, sum);
    sum.count += 1;
    for (const version of row[2]) sum.stored += version[STORED] || 0;
    sum.versions += row[2].length;
    sum.size += row[2][0][SIZE] || 0;
    sum.updated = Math.max(sum.updated, row[2][0][UPDATED] || 0);
  }
  const rows = [...folders].map(([name, sum]) => [
    link(`${name} (${sum.count})`, folder(prefix + name)), String(sum.versions), size(sum.size), size(sum.stored), when(sum.updated),
  ]);
  for (const row of modules) rows.push(moduleCells(row, row[0].slice(prefix.length)));
  if (!rows.length) {
    $("main").replaceChildren(el("p", "There are no modules here."));
    return;
  }
  $("main").replaceChildren(table(HEADS, rows.slice(0, SHOWN_MAX)), ...more(rows.length));
}

function showFound(text) {
  path("");
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [];
  for (const row of byId.values()) {
    const known = `${row[0]} ${(row[2][0][WORDS] ?? []).join(" ")}`.toLowerCase();
    if (words.every((word) => known.includes(word))) found.push(row);
  }
  const count = el("p", found.length === 1 ? "1 module" : `${found.length} modules`);
  if (!found.length) {
    $("main").replaceChildren(el("p", "No id and no keyword has all these words."));
    return;
  }
  $("main").replaceChildren(count, table(HEADS, found.slice(0, SHOWN_MAX).map((row) => moduleCells(row, row[0]))), ...more(found.length));
}

function showModule(id) {
  const row = byId.get(id);
  if (!row) {
    $("main").replaceChildren(el("p", `There is no module ${id} in this archive.`));
    return;
  }
  path(id);
  const heads = [["Version", "id"], ["Written (UTC)", "when"], ["Size", "n"], ["Stored", "n"], ["Tokens", "n"], ["Type", ""], ["", ""]];
  const out = el("div");
  const rows = row[2].map((version, i) => {
    const name = `${number(version)}${i ? "" : " (current)"}`;
    const cells = [name, when(version[UPDATED]), size(version[SIZE]), size(version[STORED]), String(version[TOKENS] ?? ""), version[TYPE] ?? ""];
    const acts = el("span");
    if (isDeleted(version)) acts.append("deleted");
    else {
      const open = el("button", "Open", { className: "link", type: "button" });
      open.onclick = () => show(out, row, version);
      acts.append(open, " ", el("a", version[PACK] ? "Pack" : "Object", { href: address(row, version) }));
    }
    return [...cells, acts];
  });
  const words = row[2][0][WORDS] ?? [];
  $("main").replaceChildren(
    el("h2", id), ...(words.length ? [el("p", `Keywords: ${words.join(", ")}`)] : []), table(heads, rows), out,
  );
}

async function unpacked(blob) {
  const decoder = globalThis["xz-decompress"].XzReadableStream;
  return new Uint8Array(await new Response(new decoder(blob.stream())).arrayBuffer());
}

// Returns the content of a member of a tar: names are in two fields of the header, or in an extended header before it.
function member(tar, name) {
  const text = (from, length) => new TextDecoder().decode(tar.subarray(from, from + length)).split("\0")[0];
  let long = "";
  for (let at = 0; at + 512 <= tar.length && tar[at]; ) {
    const size = parseInt(text(at + 124, 12), 8), kind = String.fromCharCode(tar[at + 156]), start = at + 512;
    const prefix = text(at + 345, 155), found = long || (prefix ? `${prefix}/` : "") + text(at, 100);
    if (kind === "x") long = (/ path=([^\n]*)\n/.exec(text(start, size)) ?? ["", ""])[1];
    else if (found === name) return tar.subarray(start, start + size);
    else long = "";
    at = start + Math.ceil(size / 512) * 512;
  }
  throw new Error(`it has no ${name}`);
}

function fileName(row, version) {
  const name = row[0].split("/").pop();
  const type = version[FILE].split(".").at(-2);
  return name.includes(".") ? name : `${name}.${type}`;
}

function content(out, row, version, bytes) {
  const save = el("a", `Download ${fileName(row, version)}`, {
    href: URL.createObjectURL(new Blob([bytes])), download: fileName(row, version),
  });
  const about = el("p");
  about.append(`Version ${number(version)}, ${size(bytes.length)}. `, save);
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(0, TEXT_MAX), { stream: bytes.length > TEXT_MAX });
  } catch {
    out.replaceChildren(about, el("p", "This is no text."));
    return;
  }
  const cut = bytes.length > TEXT_MAX ? [el("p", "Only the beginning is shown.")] : [];
  out.replaceChildren(about, el("pre", text, { id: "content", tabIndex: 0 }), ...cut);
}

async function show(out, row, version) {
  out.replaceChildren(el("p", "Reading the object"));
  let blob;
  try {
    const reply = await fetch(address(row, version));
    if (!reply.ok) {
      const why = reply.status === 404 ? "It is gone: it was deleted since this page was written." : `The server replied ${reply.status}.`;
      out.replaceChildren(el("p", `The object cannot be read. ${why}`, { className: "note" }));
      return;
    }
    blob = await reply.blob();
  } catch {
    choose(out, row, version);
    return;
  }
  await unpack(out, row, version, blob);
}

async function unpack(out, row, version, blob) {
  try {
    const bytes = await unpacked(blob);
    content(out, row, version, version[PACK] ? member(bytes, `${row[1]}/${version[FILE].slice(0, -3)}`) : bytes);
  } catch (e) {
    const note = `This is no readable object (${e}). Is it ${objectName(row, version)}?`;
    out.replaceChildren(el("p", note, { className: "note" }));
  }
}

// A page on a disk may not read other files, so the reader chooses the file.
function choose(out, row, version) {
  const input = el("input", undefined, { type: "file", accept: ".xz", id: "file" });
  input.onchange = () => input.files.length && unpack(out, row, version, input.files[0]);
  const why = location.protocol === "file:"
    ? "The browser does not let a page on a disk read other files. Choose the object: "
    : "The server does not reply, or does not let this page read the object. Choose a copy of it: ";
  const note = el("p", why, { className: "note" });
  note.append(el("code", decodeURIComponent(address(row, version))), " ");
  const label = el("label", "Object ");
  label.append(input);
  out.replaceChildren(note, label);
}

function go() {
  const [what, value] = location.hash.slice(1).split("=");
  const text = $("search").value.trim();
  if (what === "id") showModule(decodeURIComponent(value));
  else if (text) showFound(text);
  else showFolder(what === "in" ? decodeURIComponent(value) : "");
}

async function start() {
  const packed = Uint8Array.from(atob($("rows").textContent.trim()), (c) => c.charCodeAt(0));
  const lines = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  for (const line of lines.split("\n")) {
    if (!line) continue;
    const row = JSON.parse(line);
    byId.set(row[0], row);
  }
  $("about").append(` Written ${when(Number($("about").dataset.written))} UTC.`);
  addEventListener("hashchange", () => {
    $("search").value = "";
    go();
  });
  $("search").oninput = () => {
    if (location.hash) history.replaceState(null, "", "#");
    go();
  };
  go();
}

start().catch((e) => $("main").replaceChildren(el("p", `This page cannot show the archive: ${e}. Use a current browser.`)));
