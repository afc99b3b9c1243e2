"""An app with the controls that a notice could cover or disturb."""

import streamlit as st

st.session_state["runs"] = st.session_state.get("runs", 0) + 1
st.sidebar.slider("Level", 0, 10)
st.title("Orders")
customer = st.text_input("Customer")
st.text_area("Note")
st.button("Save")
st.selectbox("Kind", ["Retail", "Wholesale"])
st.text(f"run {st.session_state['runs']} for {customer or 'nobody'}")
for number in range(20):
    st.text(f"order {number}")
st.chat_input("Ask")
st.text("end of page")
