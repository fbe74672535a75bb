// The page of one run.

import { LineChart, sparkline } from "./chart.js";
import { Disclosure, bar, h, section, setText, table } from "./dom.js";
import { MISSING, bytes, count, countOf, duration, epsilon, percent, plain, score, time, tiny, when, wholePercent } from "./format.js";

const MOST_TILES = 60;
const EVENTS_AT_ONCE = 60;
const MOST_LINES = 6;

const STATES = {
  starting: ["starting", "nothing is recorded yet"],
  running: ["running", ""],
  quiet: ["quiet", "nothing was recorded for longer than a stage may take: stopped, or cut off"],
  waiting: ["waiting", "silos were asked to join and have not; an officer may have to approve the run"],
  stopped: ["stopped", "it rests where it is until the coordinator resumes it"],
  failed: ["failed", ""],
  finished: ["finished", ""],
};

const KINDS = {
  drops: { title: "Drops", events: ["absent"] },
  aborts: { title: "Aborts", events: ["abort"] },
  refusals: { title: "Refusals and misbehaviour", events: ["refused", "silo_misbehaved", "silo_excluded", "dealing_rejected"] },
  other: { title: "Everything else", events: [] },
};

function kindOf(event) {
  if (event.event === "joined" && event.refused?.length) return "refusals";
  if (event.event === "join_answer" && event.answer !== "joined") return "refusals";
  for (const [kind, { events }] of Object.entries(KINDS)) if (events.includes(event.event)) return kind;
  return "other";
}

function said(value) {
  if (value === null || value === undefined || value === "") return MISSING;
  if (Array.isArray(value)) return value.map(said).join(", ") || "none";
  if (typeof value === "object") return Object.entries(value).map(([name, item]) => `${name} ${said(item)}`).join(", ");
  return typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(4))) : String(value);
}

export class RunPage {
  constructor(name, fetchJson, alone) {
    Object.assign(this, { name, fetchJson, generation: "", rounds: [], told: 0, events: [], eventsTold: 0, layerRows: [], shown: EVENTS_AT_ONCE });
    this.url = `/api/runs/${encodeURIComponent(name)}`;
    this.build(alone);
  }

  build(alone) {
    this.state = h("span", { class: "badge" });
    this.phase = h("p", { class: "lead" });
    this.progress = h("div", { class: "progress" });
    this.stages = h("ol", { class: "stages", "aria-label": "Stages of the newest attempt" });
    this.alarms = h("div");
    this.cards = h("dl", { class: "cards" });
    this.charts = {
      score: new LineChart({ title: "Scores", format: score, axis: plain, from: 0, to: 1 }),
      epsilon: new LineChart({ title: "Epsilon, planned", format: epsilon, axis: plain, from: 0 }),
      bytes: new LineChart({ title: "Bytes sent by a silo", format: bytes, from: 0 }),
      size: new LineChart({ title: "Size of the network", format: percent, axis: wholePercent, from: 0, to: 1 }),
      agreement: new LineChart({ title: "Agreement by layer", format: score, axis: plain }),
      silos: new LineChart({ title: "Silos in the sums", format: count, from: 0 }),
    };
    const drawn = section("Rounds", h("div", { class: "grid" }, Object.values(this.charts).map((c) => c.element)));
    this.empty = h("p", { class: "note" }, "No round is finished yet.");
    drawn.body.prepend(this.empty);
    const layers = section("Layers: mask and agreement");
    const silos = section("Silos");
    const events = section("Events");
    const about = section("Promise and settings");
    [this.layers, this.silos, this.about] = [layers.body, silos.body, about.body];
    this.layersSection = layers.element;
    this.buildSilos();
    this.buildEvents(events.body);
    this.settings = new Disclosure("All settings", () => table("Settings of the run", [{ title: "option" }, { title: "value" }],
      Object.entries(this.latest?.config ?? {}).map(([name, value]) => [name.replaceAll("_", "-"), said(value)])));
    this.promise = h("div");
    this.about.append(this.promise, this.settings.element);
    this.element = h("div", {},
      alone ? null : h("p", { class: "crumb" }, h("a", { href: "#/" }, "All runs")),
      h("div", { class: "title" }, h("h1", { tabindex: "-1" }, this.name), this.state),
      this.phase, this.progress, this.stages, this.alarms, this.cards,
      drawn.element,
      h("div", { class: "pair" }, h("div", {}, this.layersSection, silos.element), events.element),
      about.element);
  }

  buildSilos() {
    this.siloWords = h("p", { class: "note" });
    this.tiles = h("ul", { class: "tiles" });
    this.allSilos = new Disclosure("All silos as a table", () => this.siloTable());
    this.silos.append(this.siloWords, this.tiles, this.allSilos.element);
  }

  buildEvents(body) {
    this.wanted = new Set(Object.keys(KINDS));
    this.eventLabels = {};
    const boxes = Object.entries(KINDS).map(([kind, { title }]) => {
      const label = this.eventLabels[kind] = h("span", {}, title);
      return h("label", {}, h("input", { type: "checkbox", checked: true, onchange: (event) => {
        this.wanted[event.target.checked ? "add" : "delete"](kind);
        this.drawEvents();
      } }), label);
    });
    this.list = h("ol", { class: "events" });
    this.more = h("button", { type: "button", onclick: () => {
      this.shown += EVENTS_AT_ONCE;
      this.drawEvents();
    } }, "Show more");
    this.eventWords = h("p", { class: "note" });
    body.append(h("fieldset", {}, h("legend", {}, "Show"), boxes), this.eventWords,
      h("div", { class: "scroll tall", role: "region", tabindex: "0", "aria-label": "Events, newest first" }, this.list), this.more);
  }

  async poll() {
    const asked = new URLSearchParams({ generation: this.generation, rounds: this.told, events: this.eventsTold });
    const page = await this.fetchJson(`${this.url}?${asked}`);
    if (page.generation !== this.generation) {
      Object.assign(this, { rounds: [], events: [], layerRows: [], shown: EVENTS_AT_ONCE, generation: page.generation });
    }
    this.rounds.push(...page.rounds);
    this.events.push(...page.events);
    const news = page.rounds.length || page.events.length || !this.latest;
    [this.told, this.eventsTold, this.latest] = [page.rounds_told, page.events_told, page];
    for (const row of page.rounds) if (row.layers) this.layerRows.push([row.round + 1, row.layers]);
    this.draw(page, news);
  }

  draw(page, news) {
    this.drawHead(page);
    this.drawSilos(page);
    if (!news) return;
    this.drawCards(page);
    this.drawCharts(page);
    this.drawLayers();
    this.drawEvents();
    this.promise.replaceChildren(...page.promise.map((words) => h("p", {}, words)));
    this.settings.update();
    const warned = page.alarms.map((a) => h("div", { class: "alarm" }, h("strong", {}, a.title), h("p", {}, a.text)));
    if (page.damaged) warned.push(h("div", { class: "alarm" }, `${countOf(page.damaged, "line")} of the run's logs could not be read and were left out.`));
    this.alarms.replaceChildren(...warned);
  }

  last(name) {
    return this.rounds.findLast((row) => row[name] !== undefined)?.[name];
  }

  drawHead(page) {
    const [state, meaning] = STATES[page.state] ?? [page.state, ""];
    setText(this.state, state);
    this.state.className = `badge ${page.state}`;
    const planned = page.config.rounds, done = this.rounds.length;
    const row = this.rounds.at(-1);
    const words = [planned ? `round ${done} of ${planned}` : countOf(done, "round")];
    if (row && page.state !== "finished") words.push(row.phase === "explore" ? "exploring" : "training");
    const recent = this.rounds.slice(-10);
    if (page.state === "running" && planned && recent.length) {
      const each = recent.reduce((sum, r) => sum + (r.seconds ?? 0), 0) / recent.length;
      words.push(`${duration(each)} a round`, `about ${duration(each * (planned - done))} left`);
    }
    if (page.result?.seconds_total) words.push(`took ${duration(page.result.seconds_total)}`);
    words.push(`${page.config.dataset ?? "?"}, ${page.config.model ?? "?"}, ${countOf(page.config.silos, "silo")}`);
    if (page.changed) words.push(`last sign of life ${time(page.changed)}`);
    if (meaning) words.push(meaning);
    setText(this.phase, words.join(" · "));
    this.progress.replaceChildren(bar(planned ? done / planned : 0));
    this.drawStages(page);
  }

  drawStages(page) {
    const on = page.state === "finished" ? [] : page.stages;
    this.stages.hidden = !on.length;
    this.stages.replaceChildren(...on.map((stage) => {
      const open = stage.answered === null;
      const words = open
        ? `asked ${stage.asked}${stage.began ? `, ${duration(Math.max(0, page.now - stage.began))} ago` : ""}`
        : `${stage.answered} of ${stage.asked}, ${duration(stage.seconds)}`;
      return h("li", { class: open ? "open" : null, title: page.stage_meaning[stage.stage] ?? null },
        h("strong", {}, stage.stage), " ", words);
    }));
  }

  drawCards(page) {
    const { config, result } = page, row = this.rounds.at(-1) ?? {};
    const survival = this.last("c_index") !== undefined && this.last("accuracy") === undefined;
    const name = survival ? "c_index" : "accuracy";
    const scored = this.rounds.findLast((r) => r[name] !== undefined);
    const target = config.dp_epsilon;
    const sent = row.upload_bytes_per_silo, dense = row.upload_bytes_dense_fp32;
    const drops = Object.values(page.drops).reduce((sum, n) => sum + n, 0);
    const stages = Object.entries(page.drops).map(([stage, n]) => `${stage} ${n}`).join(", ");
    const found = [
      [survival ? "C-index" : "Accuracy", score(scored?.[name]), scored ? `after round ${scored.round + 1}` : "not scored yet"],
      result?.epsilon_spent
        ? ["Epsilon spent", epsilon(result.epsilon_spent), `of ${epsilon(target)}, the largest of all silos`]
        : ["Epsilon, planned", target ? epsilon(this.last("epsilon")) : "none", target ? `of ${epsilon(target)} at delta ${tiny(config.dp_delta)}` : "no differential privacy"],
      ["Agreement", score(this.last("agreement_average")), "of the silos' updates; 1 is full"],
      ["Live parameters", percent(row.params_live / row.params_dense), `${count(row.params_live)} of ${count(row.params_dense)}`],
      ["FLOPs", percent(row.flops / row.flops_dense), "of the dense network's"],
      ["Sent by a silo", bytes(sent), dense ? `${percent(sent / dense)} of plain FedAvg's ${bytes(dense)}` : ""],
      ["Drops", count(drops), stages || "no silo was missed"],
      ["Aborts", count(row.aborts ?? page.event_counts.abort ?? 0), "attempts that gave no sum"],
    ];
    this.cards.replaceChildren(...found.map(([title, value, note]) =>
      h("div", {}, h("dt", {}, title), h("dd", { class: "value" }, value), h("dd", { class: "note" }, note))));
  }

  line(label, field, step = false) {
    return { label, step, points: this.rounds.filter((r) => r[field] !== undefined).map((r) => [r.round + 1, r[field]]) };
  }

  drawCharts(page) {
    const explored = this.rounds.filter((r) => r.phase === "explore").length;
    const last = this.rounds.at(-1)?.round + 1 || 1;
    const options = { shaded: explored, shadedLabel: "exploration", last };
    const ratio = (label, part, whole) => ({ label, step: true, points: this.rounds.filter((r) => r[part] !== undefined && r[whole]).map((r) => [r.round + 1, r[part] / r[whole]]) });
    this.empty.hidden = this.rounds.length > 0;
    this.charts.score.update([this.line("accuracy", "accuracy"), this.line("C-index", "c_index"), this.line("AUROC", "auroc")], options);
    const spent = this.line("of a silo in every round", "epsilon");
    const target = page.config.dp_epsilon;
    const promised = spent.points.length ? [{ label: "promised", points: [[spent.points[0][0], target], [last, target]] }] : [];
    this.charts.epsilon.update([spent, ...(target ? promised : [])], options);
    this.charts.bytes.update([this.line("plain FedAvg", "upload_bytes_dense_fp32"), this.line("all messages", "upload_bytes_total_per_silo"), this.line("vectors", "upload_bytes_per_silo")], options);
    this.charts.size.update([ratio("live parameters", "params_live", "params_dense"), ratio("FLOPs", "flops", "flops_dense")], options);
    this.charts.silos.update([this.line("silos in the sums", "silos", true)], options);
    this.charts.agreement.update(this.agreementLines(), options);
  }

  layerPoints(name, field) {
    const found = [];
    for (const [round, layers] of this.layerRows) {
      const value = layers.find((layer) => layer.layer === name)?.[field];
      if (value !== null && value !== undefined) found.push([round, value]);
    }
    return found;
  }

  agreementLines() {
    const names = [...new Set(this.layerRows.flatMap(([, layers]) => layers.map((l) => l.layer)))];
    if (names.length <= MOST_LINES) return names.map((name) => ({ label: name, points: this.layerPoints(name, "agreement") }));
    const over = (label, pick) => ({ label, points: this.layerRows.flatMap(([round, layers]) => {
      const values = layers.map((l) => l.agreement).filter((a) => a !== null);
      return values.length ? [[round, pick(values)]] : [];
    }) });
    return [over("mean of the layers", (v) => v.reduce((a, b) => a + b, 0) / v.length),
      over("lowest", (v) => Math.min(...v)), over("highest", (v) => Math.max(...v))];
  }

  drawLayers() {
    this.layersSection.hidden = !this.layerRows.length;
    if (!this.layerRows.length) return;
    const [, now] = this.layerRows.at(-1);
    const whole = (name, field) => Math.max(...this.layerPoints(name, field).map((p) => p[1]));
    const of = (name, field, value) => {
      const all = whole(name, field);
      return h("span", { class: "with-bar" }, `${count(value)} of ${count(all)}`, bar(value / all));
    };
    const rows = now.map((layer) => [layer.layer, of(layer.layer, "units", layer.units), of(layer.layer, "live", layer.live),
      h("span", { class: "with-spark" }, sparkline(this.layerPoints(layer.layer, "agreement")), score(layer.agreement))]);
    const focused = this.layers.contains(document.activeElement);
    const made = table("Of each layer, what is left and how far silos pull it the same way", [{ title: "layer" },
      { title: "units left" }, { title: "live parameters" }, { title: "agreement" }], rows);
    this.layers.replaceChildren(made);
    if (focused) made.focus();
  }

  siloLedger(silo, page) {
    return page.ledgers.filter((row) => row.silo === silo && row.epsilon !== null && row.dataset === "train")[0]?.epsilon;
  }

  drawSilos(page) {
    const up = page.silos.filter((silo) => silo.up).length;
    const down = page.silos.filter((silo) => silo.up === false);
    const over = page.state === "finished" ? "when the run ended" : "now";
    const words = page.silos.length
      ? `${up} of ${page.silos.length} silos up ${over}: each of these answered the last stage it was asked in.`
      : "No silo has joined yet.";
    setText(this.siloWords, words);
    const key = JSON.stringify([page.silos, page.ledgers]);
    if (key === this.siloKey) return;
    this.siloKey = key;
    const shown = page.silos.length <= MOST_TILES ? page.silos : down.slice(0, MOST_TILES);
    this.tiles.replaceChildren(...shown.map((silo) => this.tile(silo, page)));
    this.allSilos.update();
  }

  tile(silo, page) {
    const state = silo.up === null ? silo.answer || "not asked yet" : silo.up ? "up" : "down";
    const meaning = page.stage_meaning[silo.missed];
    const spent = this.siloLedger(silo.silo, page);
    return h("li", { class: silo.up === null ? null : state },
      h("p", { class: "silo" }, h("span", { class: "lamp", "aria-hidden": "true" }), h("strong", {}, silo.name), h("span", { class: "state" }, state)),
      h("p", { class: "note", title: meaning ?? null },
        silo.since ? h("span", {}, "since ", when(silo.since), " · ") : null,
        `in ${silo.sums} of ${page.sums} sums · `,
        silo.drops ? `missed ${silo.drops} times, last at ${silo.missed}` : "never missed",
        spent === undefined ? null : ` · epsilon ${epsilon(spent)} by its ledger`));
  }

  siloTable() {
    const page = this.latest;
    const rows = page.silos.map((silo) => [silo.name, String(silo.silo), silo.up === null ? silo.answer || MISSING : silo.up ? "up" : "down", when(silo.since),
      `${silo.sums} of ${page.sums}`, count(silo.drops), silo.missed || MISSING, epsilon(this.siloLedger(silo.silo, page))]);
    return table("Silos as the coordinator saw them", [{ title: "silo" }, { title: "id", number: true }, { title: "state" }, { title: "since" },
      { title: "sums", number: true }, { title: "missed", number: true }, { title: "last missed at" }, { title: "epsilon", number: true }], rows);
  }

  drawEvents() {
    const counts = {};
    for (const event of this.events) counts[kindOf(event)] = (counts[kindOf(event)] ?? 0) + 1;
    for (const [kind, label] of Object.entries(this.eventLabels)) setText(label, `${KINDS[kind].title} (${counts[kind] ?? 0})`);
    const found = this.events.filter((event) => this.wanted.has(kindOf(event)));
    const shown = found.slice(-this.shown).reverse();
    const missing = this.latest.events_told - this.events.length;
    setText(this.eventWords, `${countOf(found.length, "event")}, newest first` + (missing ? `; ${count(missing)} older ones are in events.jsonl` : ""));
    this.list.replaceChildren(...shown.map((event) => h("li", { class: kindOf(event) }, when(event.time), " ", h("span", {}, this.words(event)))));
    this.more.hidden = shown.length >= found.length;
  }

  siloName(id) {
    return this.latest.silos.find((silo) => silo.silo === id)?.name ?? `silo ${id}`;
  }

  words(event) {
    const at = event.round === undefined ? "" : `round ${event.round + 1}${event.attempt ? `, attempt ${event.attempt + 1}` : ""}: `;
    switch (event.event) {
      case "absent":
        return `${at}${this.siloName(event.silo)} was missed at ${event.stage} (${event.status}${event.error ? `: ${event.error}` : ""})`;
      case "abort":
        return `${at}attempt aborted at ${event.stage}: ${event.reason}${event.blamed?.length ? `; to blame: ${event.blamed.map((id) => this.siloName(id)).join(", ")}` : ""}`;
      case "joined":
        return `${countOf(event.silos?.length ?? 0, "silo")} joined${event.refused?.length ? `; refused: ${said(event.refused)}` : ""}`;
      case "join_answer":
        return event.answer === "joined" ? `${this.siloName(event.silo)} joined` : `${this.siloName(event.silo)} did not join: ${said(event.answer)}`;
      case "pruned":
        return `${at}pruned from ${count(event.live_before)} to ${count(event.live_after)} live parameters`;
      case "silo_misbehaved":
        return `${this.siloName(event.silo)} misbehaved at ${event.stage}: ${event.reason}`;
      case "epoch_opened":
        return `key epoch ${event.epoch} opened with ${countOf(event.silos?.length ?? 0, "silo")}`;
      default: {
        const rest = Object.entries(event).filter(([name]) => !["time", "event", "round", "attempt"].includes(name));
        return `${at}${said(event.event).replaceAll("_", " ")}${rest.length ? `: ${rest.map(([name, value]) => `${name.replaceAll("_", " ")} ${said(value)}`).join("; ")}` : ""}`;
      }
    }
  }
}
