// Asks the server again and again, shows one of the pages, and takes the token where one is needed.

import { bar, h, setText, table } from "./dom.js";
import { countOf, epsilon, percent, score, time, when } from "./format.js";
import { RunPage } from "./run.js";
import { SiloPage } from "./silo.js";

const PAUSE = 2000, LONGEST_PAUSE = 30000, PATIENCE = 30000;
const TOKEN = "autoflip_secure token";

const main = document.getElementById("content");
const status = document.getElementById("status");
const pause = document.getElementById("pause");

let page = null, place = null, paused = false, failures = 0, timer = 0, turn = 0;

// The skip link changes the address too, and leads nowhere else.
const route = () => (location.hash === "" || location.hash.startsWith("#/") ? location.hash : place ?? "");

class Unauthorised extends Error {}

async function fetchJson(url) {
  const token = sessionStorage.getItem(TOKEN);
  const response = await fetch(url, {
    headers: token ? { authorization: `Bearer ${token}` } : {}, cache: "no-store", signal: AbortSignal.timeout(PATIENCE),
  });
  if (response.status === 401) throw new Unauthorised();
  if (!response.ok) throw new Error(response.status === 404 ? "not there any more" : `the server answered ${response.status}`);
  return response.json();
}

class RunsPage {
  constructor(title) {
    this.list = h("div");
    this.element = h("div", {}, h("h1", { tabindex: "-1" }, title), this.list);
  }

  async poll() {
    const { runs } = await fetchJson("/api/overview");
    const key = JSON.stringify(runs);
    if (key === this.key) return;
    this.key = key;
    if (!runs.length) {
      this.list.replaceChildren(h("p", { class: "lead" }, "No run has begun here yet."));
      return;
    }
    const going = runs.filter((run) => run.state === "running").length;
    const rows = runs.map((run) => [h("a", { href: `#/run/${encodeURIComponent(run.name)}` }, run.name),
      h("span", { class: `badge ${run.state}` }, run.state),
      h("span", { class: "with-bar" }, `${run.rounds} of ${run.planned ?? "?"}`, bar(run.rounds / run.planned)),
      [run.dataset, run.model].filter(Boolean).join(", "), run.score ? score(run.score.value) : "–",
      run.epsilon_target ? `${epsilon(run.epsilon)} of ${epsilon(run.epsilon_target)}` : "no DP", percent(run.live),
      `${run.silos_up} of ${run.silos ?? "?"}`, when(run.changed)]);
    const focused = this.list.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    this.list.replaceChildren(h("p", { class: "lead" }, `${countOf(runs.length, "run")}, ${going} running`),
      h("section", { class: "flush" }, table("Runs, the newest first", [{ title: "run" }, { title: "state" }, { title: "rounds" }, { title: "data, network" },
        { title: "score", number: true }, { title: "epsilon", number: true }, { title: "live", number: true }, { title: "silos up", number: true }, { title: "changed" }], rows)));
    if (focused) [...this.list.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus();
  }
}

function login(wrong) {
  const field = h("input", { type: "password", id: "token", autocomplete: "off", required: true });
  const form = h("form", { class: "login", onsubmit: (event) => {
    event.preventDefault();
    sessionStorage.setItem(TOKEN, field.value.trim());
    place = "";
    tick();
  } }, h("h1", { tabindex: "-1" }, "A token is needed"), h("p", {}, "Whoever runs this page knows it: it is in the file named by --token-file."),
  wrong ? h("p", { class: "alarm", role: "alert" }, "That token is not the right one.") : null,
  h("label", { for: "token" }, "Token"), field, h("button", { type: "submit" }, "Open"));
  main.replaceChildren(form);
  page = null;
  place = "login";
  field.focus();
}

// What the address asks for. `first` is false where the reader moved there, and the heading then takes the focus.
async function open(first) {
  const overview = await fetchJson("/api/overview");
  setText(document.getElementById("kind"), { run: "run", coordinator: "coordinator", silo: "silo" }[overview.kind]);
  const [, asked] = location.hash.match(/^#\/run\/([^/]+)$/) ?? [];
  if (overview.kind === "silo") page = new SiloPage(fetchJson);
  else if (overview.kind === "run") page = new RunPage(overview.runs[0].name, fetchJson, true);
  else if (asked) page = new RunPage(decodeURIComponent(asked), fetchJson, false);
  else page = new RunsPage(`Runs of ${overview.title}`);
  await page.poll();
  document.title = `${page.name ?? overview.title} – autoflip_secure`;
  main.replaceChildren(page.element);
  if (!first) main.querySelector("h1").focus();
}

async function tick() {
  clearTimeout(timer);
  const mine = turn += 1;
  try {
    if (place === "login" && !sessionStorage.getItem(TOKEN)) return;
    if (page === null || place !== route()) {
      const first = place === null;
      place = route();
      await open(first);
    } else await page.poll();
    if (mine !== turn) return;
    failures = 0;
    setText(status, paused ? `Paused at ${time(Date.now() / 1000)}` : "Live");
    status.className = paused ? "paused" : "on";
  } catch (error) {
    if (mine !== turn) return;
    if (error instanceof Unauthorised) {
      const wrong = sessionStorage.getItem(TOKEN) !== null;
      sessionStorage.removeItem(TOKEN);
      setText(status, "Not connected");
      login(wrong);
      return;
    }
    failures += 1;
    setText(status, `Connection lost (${error.name === "TypeError" ? "no answer" : error.message}); trying again`);
    status.className = "off";
  }
  if (!paused && !document.hidden) timer = setTimeout(tick, Math.min(LONGEST_PAUSE, PAUSE * 2 ** Math.min(failures, 4)));
}

pause.addEventListener("click", () => {
  paused = !paused;
  pause.setAttribute("aria-pressed", String(paused));
  tick();
});
document.addEventListener("visibilitychange", () => document.hidden || tick());
addEventListener("hashchange", () => {
  if (place !== "login" && route() !== place) tick();
});
tick();
