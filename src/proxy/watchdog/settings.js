// The watchdog: detects that the page has lost its connection to the app, resumes the connection if the sidecar can,
// and otherwise makes the page reconnect.
//
// A browser needs minutes to detect a network that fails silently. Streamlit detects it by heartbeats that the server
// acks. Its page sends one when its host page requests it, and from 1.55 on it reconnects if the ack is missing. This
// script does the latter for all versions; in mode "self" it also sends its own heartbeats. A sidecar that can resume
// answers the script's own checks instead, and the page does not notice that its connection was replaced. The script
// wraps only the websocket of Streamlit's messages, and changes no message.
//
// This file has the script's settings, and what the page must not replace later.

const { src, dataset } = document.currentScript;
const settings = {
  src,
  mode: dataset.mode,
  interval: Number(dataset.interval), // milliseconds, as all times here
  ackTimeout: Number(dataset.ackTimeout),
  maxAge: Number(dataset.maxAge ?? Infinity),
};
const NativeWebSocket = window.WebSocket;
const nativeFetch = window.fetch.bind(window);

const STREAM = /(\/_stcore)?\/stream$/; // before Streamlit 1.14 without `/_stcore`
