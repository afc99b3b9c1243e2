"use strict";
// Formats numbers and times, and finds and changes elements. Text from outside is only set as text.

const $ = (id) => document.getElementById(id);
const set = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

const count = (number) => number.toLocaleString("en");
const plural = (number, one) => `${count(number)} ${one}${number === 1 ? "" : "s"}`;
const rate = (number) => (number < 9.95 ? number.toFixed(1) : count(Math.round(number)));

const latency = (seconds) => {
  if (seconds === null) return "–";
  const millis = seconds * 1000;
  if (millis < 9.995) return `${millis.toFixed(2)} ms`;
  if (millis < 99.95) return `${millis.toFixed(1)} ms`;
  return millis < 999.5 ? `${millis.toFixed(0)} ms` : `${seconds.toFixed(2)} s`;
};

const duration = (seconds) => {
  const [days, hours, minutes] = [86400, 3600, 60].map((unit) => Math.floor(seconds / unit));
  if (days) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${Math.floor(seconds)} s`;
};
const ago = (seconds) => (seconds === null ? "–" : `${duration(Math.max(0, seconds))} ago`);

const bytes = (number) => {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (number >= 999.5 && power < units.length - 1) {
    number /= 1000;
    power += 1;
  }
  return `${power && number < 99.95 ? number.toFixed(1) : number.toFixed(0)} ${units[power]}`;
};

const clock = (epoch) => new Date(epoch).toLocaleTimeString([], { hour12: false });

/** Close codes: RFC 6455 section 7.4.1, and IANA's registry. */
const CODES = {
  1000: "normal",
  1001: "going away",
  1002: "protocol error",
  1003: "unsupported data",
  1005: "no code",
  1006: "no close frame",
  1007: "invalid payload",
  1008: "policy violation",
  1009: "too big",
  1010: "extension missing",
  1011: "internal error",
  1012: "service restart",
  1013: "try again later",
  1014: "bad gateway",
};
/** Codes of normal closes. */
const QUIET_CODES = ["1000", "1001", "1005", "1012"];

const GAVE_UP = {
  browser_dead: "browser: acknowledges no data",
  browser_stalled: "browser: does not read",
  browser_pong_missed: "browser: did not answer a ping",
  upstream_dead: "upstream: acknowledges no data",
  upstream_stalled: "upstream: neither reads nor sends, and the browser is gone",
};
