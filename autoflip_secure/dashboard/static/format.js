// Numbers and times as people read them; a missing value is a dash, and no privacy cost is rounded down.

export const MISSING = "–";
const known = (value) => typeof value === "number" && Number.isFinite(value);

export const score = (value) => (known(value) ? value.toFixed(3) : MISSING);
export const count = (value) => (known(value) ? Math.round(value).toLocaleString("en") : MISSING);
export const countOf = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

export function epsilon(value) {
  if (!known(value)) return MISSING;
  const thousandths = Math.ceil(value * 1000 - 1e-6);
  return (thousandths / 1000).toFixed(thousandths % 1000 ? 3 : 0);
}

export function percent(ratio) {
  if (!known(ratio)) return MISSING;
  const hundredths = 100 * ratio;
  return `${hundredths >= 1 || hundredths === 0 ? hundredths.toFixed(1) : hundredths.toPrecision(2)} %`;
}

// Such as delta, where only the size matters; no line breaks at its sign.
export const tiny = (value) => (known(value) && value < 1e-3 ? Number(value.toPrecision(3)).toExponential().replace("-", "\u2011") : String(value));
export const wholePercent = (ratio) => `${Math.round(100 * ratio)} %`;
export const plain = (value) => String(Number(value.toPrecision(3)));

export function bytes(value) {
  if (!known(value)) return MISSING;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (value >= 999.5 && power < units.length - 1) {
    value /= 1000;
    power += 1;
  }
  return `${power ? Number(value.toPrecision(3)) : Math.round(value)} ${units[power]}`;
}

export function duration(seconds) {
  if (!known(seconds) || seconds < 0) return MISSING;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  if (whole < 172800) return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(whole / 86400)} days`;
}

// `12:03:04`, or with its date where that is not today's.
export function time(seconds) {
  if (!known(seconds)) return MISSING;
  const when = new Date(1000 * seconds);
  const clock = when.toLocaleTimeString("en-GB");
  const day = when.toLocaleDateString("en-CA");
  return day === new Date().toLocaleDateString("en-CA") ? clock : `${day} ${clock}`;
}

export function when(seconds) {
  if (!known(seconds)) return document.createTextNode(MISSING);
  const node = document.createElement("time");
  node.dateTime = new Date(1000 * seconds).toISOString();
  node.textContent = time(seconds);
  return node;
}
