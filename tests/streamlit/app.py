"""The test app: one of each feature that a sidecar could break. Works on Streamlit 1.29 to 1.67."""

import hashlib

import streamlit as st

# `support.known.DOWNLOAD` is the same expression; the app must run without the test code on its path.
DOWNLOAD = hashlib.shake_256(b"download").digest(300_000)

st.session_state["runs"] = st.session_state.get("runs", 0) + 1

st.title("Heartbeat test app")
level = st.slider("Level", 0, 100, 10)
deltas = st.slider("Deltas", 0, 10_000, 0)
st.text(f"level {level}")
st.text(f"run {st.session_state['runs']}")
st.dataframe({"number": [1, 2, 3], "word": ["one", "two", "three"]})
st.download_button("Download", DOWNLOAD, "known.bin", "application/octet-stream")

upload = st.file_uploader("Upload")
if upload is not None:
    content = upload.getvalue()
    st.text(f"upload {upload.name} {len(content)} {hashlib.sha256(content).hexdigest()}")

for number in range(deltas):
    st.text(f"delta {number}")
st.text("end of page")
