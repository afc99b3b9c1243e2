"""The embedded app, with two pages: session state, and scripts that keep the server busy."""

import hashlib
import time

import streamlit as st

BUSY_SECONDS = 3

state = st.session_state
state.setdefault("count", 0)
state.setdefault("busy", 0)
st.title("Home")
if st.button("Count"):
    state["count"] += 1
if st.button("Sleep"):
    time.sleep(BUSY_SECONDS)
    state["busy"] += 1
if st.button("Spin"):
    end = time.monotonic() + BUSY_SECONDS
    while time.monotonic() < end:
        pass
    state["busy"] += 1

level = st.slider("Level", 0, 100, 10)
st.text(f"level {level}")
st.text(f"count {state['count']}")
st.text(f"busy {state['busy']}")
upload = st.file_uploader("Upload")
if upload is not None:
    content = upload.getvalue()
    st.text(f"upload {upload.name} {len(content)} {hashlib.sha256(content).hexdigest()}")
st.text("end of page")
