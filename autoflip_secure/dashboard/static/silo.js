// The page of a silo about itself.

import { LineChart } from "./chart.js";
import { Disclosure, bar, h, section, setText, table } from "./dom.js";
import { MISSING, bytes, count, countOf, epsilon, percent, plain, time, tiny, when } from "./format.js";

const MOST_ROWS = 100;

const share = (ratio) => (ratio < 0.001 ? "under 0.1 %" : percent(ratio));
const day = (text) => (text ?? MISSING).slice(0, 16).replace("T", " ");

function words(value) {
  if (value === null || value === undefined) return "not set";
  if (Array.isArray(value)) return value.map(words).join(", ") || "none";
  if (typeof value === "object") return Object.entries(value).map(([name, item]) => `${name} ${words(item)}`).join(", ") || "none";
  if (typeof value === "number") return tiny(value);
  return value === true ? "yes" : value === false ? "no" : String(value);
}

function channels(value) {
  if (!Array.isArray(value)) return MISSING;
  return value.map((c) => (Array.isArray(c) ? `${c[0]} (${count(c[1])})` : words(c))).join(", ") || MISSING;
}

export class SiloPage {
  constructor(fetchJson) {
    Object.assign(this, { fetchJson, generation: "", told: 0, messages: [] });
    this.heading = h("h1", { tabindex: "-1" }, "Silo");
    this.lead = h("p", { class: "lead" });
    this.alarms = h("div");
    const budget = section("Privacy ledger"), runs = section("Runs that used these records");
    const approvals = section("Approvals"), sent = section("What left"), policy = section("Policy");
    [this.budget, this.runs, this.approvals, this.policy] = [budget.body, runs.body, approvals.body, policy.body];
    this.approvalsSection = approvals.element;
    this.sentWords = h("p", { class: "note" });
    this.sentKinds = h("div");
    this.sentList = new Disclosure("Messages, newest first", () => this.messageTable());
    sent.body.append(this.sentWords, this.sentKinds, this.sentList.element);
    this.gauges = h("div");
    this.course = new LineChart({ title: "Epsilon over all runs", format: epsilon, axis: plain, from: 0, x: "line" });
    this.head = h("p", { class: "note hash" });
    this.budget.append(this.gauges, this.course.element, this.head);
    this.element = h("div", {}, this.heading, this.lead, this.alarms,
      approvals.element, h("div", { class: "pair" }, budget.element, policy.element), runs.element, sent.element);
  }

  async poll() {
    const asked = new URLSearchParams({ generation: this.generation, messages: this.told });
    const page = await this.fetchJson(`/api/silo?${asked}`);
    if (page.generation !== this.generation) Object.assign(this, { messages: [], generation: page.generation });
    this.messages.push(...page.messages);
    this.messages.splice(0, Math.max(0, this.messages.length - 500));
    const news = page.messages.length > 0 || !this.latest;
    [this.told, this.latest] = [page.messages_told, page];
    setText(this.heading, page.name);
    this.drawLead(page);
    this.drawOnChange("budget", page.ledger, () => this.drawLedger(page.ledger));
    this.drawOnChange("policy", page.policy, () => this.drawPolicy(page.policy));
    this.drawOnChange("approvals", page.approvals, () => this.drawApprovals(page.approvals));
    if (news) this.drawSent(page);
  }

  // Rebuilt only where it changed, so that nobody loses their place in it.
  drawOnChange(name, value, draw) {
    this.keys ??= {};
    const key = JSON.stringify({ ...value, read: undefined });
    if (this.keys[name] === key) return;
    this.keys[name] = key;
    draw();
  }

  drawLead(page) {
    const { ledger } = page;
    const parts = [{ none: "no ledger yet: no record was used", reading: "reading the ledger", error: "the ledger cannot be read" }[ledger.status]
      ?? `ledger of silo ${ledger.silo}, ${countOf(ledger.lines, "line")}, chain unbroken, recomputed at ${time(ledger.read)}`];
    if (ledger.last) parts.push(`last used in ${ledger.last.phase}, round ${ledger.last.round + 1}, at ${time(ledger.last.time)}`);
    setText(this.lead, parts.join(" · "));
    const warned = [ledger, page.policy].filter((part) => part.status === "error").map((part) => part.error);
    if (page.damaged) warned.push(`${countOf(page.damaged, "line")} of audit.jsonl could not be read.`);
    const said = warned.join("\n");
    if (said !== this.warned) this.alarms.replaceChildren(...warned.map((text) => h("div", { class: "alarm" }, text)));
    this.warned = said;
  }

  drawLedger(ledger) {
    const sets = ledger.datasets ?? [];
    if (!sets.length) {
      const why = ledger.status === "reading" ? "The ledger is being read; accountants take some seconds." : "Nothing is spent.";
      this.gauges.replaceChildren(h("p", { class: "note" }, why));
      this.head.replaceChildren();
      this.course.update([]);
      this.runs.replaceChildren(h("p", { class: "note" }, "None."));
      return;
    }
    this.gauges.replaceChildren(...sets.map((set) => h("div", { class: "record-set" },
      h("h3", {}, `${set.dataset} records`),
      h("p", { class: "note" }, `epsilon of a ${set.unit} at delta ${tiny(set.delta)} · ${countOf(set.lines, "line")} · caps from ${set.caps_from}`),
      this.gauge("over all runs", set.epsilon, set.epsilon_cap),
      this.gauge("within 365 days", set.epsilon_year, set.epsilon_per_year_cap),
      set.epsilon_per_run_cap === null ? null : h("p", { class: "note" }, `cap of one run: ${set.epsilon_per_run_cap}`),
      set.adversary_words.map((text) => h("p", { class: "note" }, text)))));
    this.head.replaceChildren("hash of the last line ", h("code", {}, ledger.head));
    const cap = sets.find((set) => set.epsilon_cap !== null)?.epsilon_cap;
    const lines = sets.map((set) => ({ label: `${set.dataset} records`, points: set.course }));
    this.course.update(cap === undefined ? lines : [...lines, { label: "cap", points: [[1, cap], [ledger.lines, cap]] }], { last: ledger.lines });
    const rows = sets.flatMap((set) => [...set.sessions].reverse().map((run) => [run.session.slice(0, 8), set.dataset, run.trust || MISSING,
      [...new Set(run.uses.map((use) => use.phase))].join(", "), count(run.uses.reduce((sum, use) => sum + use.uses, 0)),
      `${run.epsilon === null ? "unbounded" : epsilon(run.epsilon)}${run.epsilon_per_run_cap === null ? "" : ` of ${run.epsilon_per_run_cap}`}`,
      run.epsilon_after === null ? "unbounded" : epsilon(run.epsilon_after),
      h("time", {}, day(run.uses.map((use) => use.first).sort()[0])), h("time", {}, day(run.uses.map((use) => use.last).sort().at(-1)))]));
    this.runs.replaceChildren(table("What each run cost, the newest first; times in UTC", [{ title: "run" }, { title: "records" }, { title: "trust" },
      { title: "phases" }, { title: "uses", number: true }, { title: "epsilon", number: true }, { title: "all runs after it", number: true },
      { title: "first use" }, { title: "last use" }], rows));
  }

  gauge(title, spent, cap) {
    const left = cap === null ? "no cap" : `of ${cap}, ${epsilon(Math.max(0, Math.floor(1000 * (cap - spent)) / 1000))} left`;
    const share = cap ? spent / cap : 0;
    return h("div", { class: "gauge" },
      h("p", {}, h("span", {}, title), h("strong", {}, spent === null ? "not bounded" : epsilon(spent)), h("span", { class: "note" }, left)),
      cap === null || spent === null ? null : bar(share, share > 0.9 ? "high" : ""));
  }

  drawApprovals(approvals) {
    this.approvalsSection.hidden = !approvals || approvals.status === "none";
    if (this.approvalsSection.hidden) return;
    if (approvals.status === "error") {
      this.approvals.replaceChildren(h("div", { class: "alarm" }, approvals.error));
      return;
    }
    const rows = approvals.runs.map((run) => [h("code", {}, run.run), run.state, run.words || MISSING, run.asked ? when(run.asked) : MISSING, run.decided ? when(run.decided) : MISSING, run.by || MISSING]);
    const pending = approvals.runs.filter((run) => run.state === "pending").length;
    this.approvals.replaceChildren(
      h("p", {}, pending ? `${countOf(pending, "run")} waiting for this silo's officer: autoflip-secure silo review` : "No run is waiting for approval."),
      rows.length ? table("Runs that asked this silo, the newest first", [{ title: "run" }, { title: "state" }, { title: "what" }, { title: "asked" }, { title: "decided" }, { title: "by" }], rows) : null);
  }

  drawSent(page) {
    const total = page.sent.reduce((sum, each) => sum + each.bytes, 0);
    setText(this.sentWords, page.messages_told ? `${countOf(page.messages_told, "line")} in the audit log, ${bytes(total)} in all` : "No audit log yet.");
    const rows = page.sent.map((each) => [[...new Set([each.kind, each.stage])].filter(Boolean).join(": ") || MISSING, count(each.lines),
      each.bytes ? bytes(each.bytes) : MISSING, each.bytes ? h("span", { class: "with-bar" }, share(each.bytes / total), bar(each.bytes / total)) : MISSING]);
    this.sentKinds.replaceChildren(...(rows.length ? [table("Messages by kind and stage", [{ title: "message" }, { title: "lines", number: true },
      { title: "bytes", number: true }, { title: "of all bytes" }], rows)] : []));
    this.sentList.element.hidden = !rows.length;
    this.sentList.update();
  }

  messageTable() {
    const rows = this.messages.slice(-MOST_ROWS).reverse().map((m) => [count(m.n), when(m.time), words(m.kind), m.stage ? `${m.stage}${m.status && m.status !== "ok" ? `: ${m.status}${m.error ? ` (${m.error})` : ""}` : ""}` : MISSING,
      m.round === undefined ? MISSING : String(m.round + 1), m.attempt === undefined ? MISSING : String(m.attempt + 1), bytes(m.bytes), channels(m.channels),
      Array.isArray(m.ledger) ? count(m.ledger[0]) : MISSING]);
    return table(`The last ${rows.length} lines of the audit log`, [{ title: "line", number: true }, { title: "time" }, { title: "kind" }, { title: "stage" },
      { title: "round", number: true }, { title: "attempt", number: true }, { title: "bytes", number: true }, { title: "channels (numbers)" }, { title: "ledger line", number: true }], rows);
  }

  drawPolicy(policy) {
    if (policy.status !== "read") {
      this.policy.replaceChildren(h("p", { class: "note" }, policy.status === "none" ? "There is no policy.toml: this silo answers nothing." : "policy.toml cannot be read: this silo answers nothing."));
      return;
    }
    const rows = Object.entries(policy.settings).map(([name, value]) => [name, words(value)]);
    this.policy.replaceChildren(table("The least protection this silo accepts (policy.toml)", [{ title: "setting" }, { title: "value" }], rows));
  }
}
