//! The script that pages get, made of its parts.

/// The script, as served.
pub(super) const SCRIPT: &str = concat!(
    "(() => {\n\"use strict\";\n",
    include_str!("settings.js"),
    include_str!("rerun.js"),
    include_str!("end.js"),
    include_str!("delivery.js"),
    include_str!("events.js"),
    include_str!("notice.js"),
    include_str!("socket.js"),
    include_str!("main.js"),
    "})();\n",
);
