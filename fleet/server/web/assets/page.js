// Keeps the page live, and saves a few steps; without it everything can be read and done all the same.
"use strict";
(() => {
  const $ = (s, at = document) => at.querySelector(s);
  const root = document.documentElement;
  const body = document.body;

  // Words for how long ago; the same as the server's.
  const span = (s) => {
    s = Math.round(Math.max(0, s));
    if (s >= 172800) return Math.round(s / 86400) + " days";
    const steps = [[86400, "day"], [3600, "h"], [60, "min"], [1, "s"]];
    for (let i = 0; i < 3; i++) {
      const [size, name] = steps[i];
      if (s >= size) {
        const n = Math.floor(s / size), rest = Math.floor((s % size) / steps[i + 1][0]);
        return n + " " + name + (rest && (name !== "min" || n < 2) ? " " + rest + " " + steps[i + 1][1] : "");
      }
    }
    return s + " s";
  };
  // Between the server's clock and this one's.
  const shift = Date.parse(body.dataset.now) - Date.now();
  const ago = (at) => {
    const passed = (Date.now() + shift - at) / 1000;
    return Math.abs(passed) < 1 ? "now" : passed > 0 ? span(passed) + " ago" : "in " + span(-passed);
  };
  const tell = () => {
    for (const time of document.querySelectorAll("time.ago")) {
      const words = ago(Date.parse(time.dateTime));
      if (time.textContent !== words) time.textContent = words;
    }
  };
  setInterval(tell, 1000);

  // In what is copied, times are exact.
  document.addEventListener("copy", (event) => {
    const chosen = getSelection();
    if (!chosen.rangeCount || chosen.isCollapsed) return;
    const part = chosen.getRangeAt(0).cloneContents();
    const times = part.querySelectorAll("time.ago");
    if (!times.length || !event.clipboardData) return;
    const lines = chosen.toString();
    let text = lines;
    for (const time of times) text = text.replace(time.textContent, time.title);
    event.clipboardData.setData("text/plain", text);
    event.preventDefault();
  });

  // Live parts: asked for again when the fleet says that something of their kind changed.
  const lost = $("#lost");
  let since = Date.now(), due = false, asking = false, held = null;
  const kinds = () => new Set([...document.querySelectorAll("[data-live]")].flatMap((e) => e.dataset.live.split(" ")));
  const isBusy = (part) => part.contains(document.activeElement) && document.activeElement !== body
    || part.matches(":hover") && $("a:hover, button:hover, input:hover, summary:hover", part)
    || (getSelection().type === "Range" && part.contains(getSelection().anchorNode));
  const put = (text) => {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    let left = false;
    for (const part of document.querySelectorAll("[data-live]")) {
      const other = fresh.getElementById(part.id);
      if (!other || other.innerHTML === part.dataset.was) continue;
      // Nothing moves away from under a hand.
      if (isBusy(part)) { left = true; continue; }
      const open = [...part.querySelectorAll("details")].map((d) => d.open);
      const ticked = new Set([...part.querySelectorAll("input:checked")].map((i) => i.value));
      const html = other.innerHTML;
      part.innerHTML = html;
      part.dataset.was = html;
      part.querySelectorAll("details").forEach((d, i) => { if (open[i]) d.open = true; });
      part.querySelectorAll("input[type=checkbox]").forEach((i) => { if (ticked.has(i.value)) i.checked = true; });
    }
    held = left ? text : null;
    tell();
  };
  setInterval(() => { if (held) put(held); }, 700);
  const ask = async () => {
    if (asking) { due = true; return; }
    asking = true; due = false;
    try {
      const answer = await fetch(location.href, { headers: { "X-Fragment": "live" }, redirect: "error" });
      if (!answer.ok) throw new Error(answer.status);
      put(await answer.text());
      since = Date.now();
      heard();
    } catch (error) { lose(); }
    asking = false;
    // Not more often than people can read.
    if (due) setTimeout(ask, 900);
  };
  const lose = () => {
    if (!lost.hidden) return;
    $("time", lost).dateTime = new Date(since + shift).toISOString();
    $("time", lost).title = new Date(since + shift).toISOString().slice(0, 19).replace("T", " ") + " UTC";
    lost.hidden = false;
    tell();
  };
  const heard = () => { lost.hidden = true; };
  const listen = () => {
    const source = new EventSource(body.dataset.events);
    let wasLost = false;
    source.onopen = () => { if (wasLost) ask(); else { since = Date.now(); heard(); } wasLost = false; };
    source.onerror = () => {
      if (!wasLost) since = Date.now();
      wasLost = true; lose();
      // Some answers end it for good; then it is tried again by us.
      if (source.readyState === EventSource.CLOSED) setTimeout(listen, 3000), source.close();
    };
    source.addEventListener("changed", (event) => {
      since = Date.now();
      const said = JSON.parse(event.data), mine = body.dataset.ids ? body.dataset.ids.split(" ") : [];
      if (!kinds().has(said.kind)) return;
      if (mine.length && said.ids.length && !said.ids.some((id) => mine.includes(id))) return;
      if (document.hidden) { due = true; return; }
      ask();
    });
    addEventListener("offline", () => { since = Date.now(); lose(); });
    addEventListener("pagehide", () => source.close(), { once: true });
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden && due) ask(); });
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  if (body.dataset.events && $("[data-live]")) listen();

  // The figures at the pointer.
  document.addEventListener("pointermove", (event) => {
    const at = event.target.closest && event.target.closest(".chart .at");
    if (at) $("output", at.closest("figure")).textContent = $("title", at).textContent;
  });

  // Copying a command.
  for (const one of document.querySelectorAll(".command button")) one.hidden = false;
  document.addEventListener("click", async (event) => {
    const copy = event.target.closest(".command button");
    if (copy) {
      try { await navigator.clipboard.writeText($("code", copy.parentNode).textContent); copy.textContent = "Copied"; }
      catch (error) { getSelection().selectAllChildren($("code", copy.parentNode)); }
      return;
    }
    const menu = event.target.closest(".menu");
    if (menu) { event.preventDefault(); const shown = $(".nav").classList.toggle("shown"); menu.setAttribute("aria-expanded", shown); return; }
    const all = event.target.closest("input[data-all]");
    if (all) for (const one of document.querySelectorAll(`input[name="${all.dataset.all}"]`)) one.checked = all.checked;
    const theme = event.target.closest("button[name=theme]");
    if (theme) {
      event.preventDefault();
      if (theme.value === "auto") delete root.dataset.theme; else root.dataset.theme = theme.value;
      document.cookie = `edgekit-theme=${theme.value}; path=/; max-age=31536000; samesite=lax`;
      for (const one of document.querySelectorAll("button[name=theme]")) one.setAttribute("aria-pressed", one === theme);
    }
  });

  // Keys.
  const keys = { o: "/", r: "/rollouts", d: "/devices", l: "/releases", e: "/experiments", a: "/audit", s: "/settings" };
  let after = 0;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    if (event.key === "/") { event.preventDefault(); $("#q").focus(); $("#q").select(); }
    else if (event.key === "?") { event.preventDefault(); $("#help").togglePopover(); }
    else if (event.key === "g") after = Date.now();
    else if (Date.now() - after < 1500 && keys[event.key]) location.href = keys[event.key];
  });
})();
