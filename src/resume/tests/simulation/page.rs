//! The page of a simulation: the script's own end of the connection, in a JavaScript engine.

use rquickjs::function::IntoArgs;
use rquickjs::{Array, Ctx, FromJs, Function, IntoJs, Object, Value, prelude::This};

/// Its messages are not Streamlit's, so that none is merged with another.
const SCRIPT: &str =
    concat!(include_str!("../../../proxy/watchdog/rerun.js"), include_str!("../../../proxy/watchdog/end.js"));

/// A data message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Text(String),
    Binary(Vec<u8>),
}

/// What the script's end asks for; the script describes each.
#[derive(Debug)]
pub(super) enum Action {
    Send(Message),
    Answered,
    Deliver(Message),
    Drop,
    Lost,
    Retry,
    Resumed,
    Greeted,
    Died,
    Ended,
    End(u16),
}

/// The script's class, from which each page is made.
pub(super) struct Script<'js>(Function<'js>);

/// The end of one logical connection.
pub(super) struct Page<'js>(Object<'js>);

impl<'js> IntoJs<'js> for &Message {
    fn into_js(self, ctx: &Ctx<'js>) -> rquickjs::Result<Value<'js>> {
        match self {
            Message::Text(text) => text.as_str().into_js(ctx),
            Message::Binary(bytes) => {
                // As a Blob: its size is known, and the script does not look inside. One character is one byte.
                let blob = Object::new(ctx.clone())?;
                blob.set("size", bytes.len())?;
                blob.set("content", bytes.iter().map(|&byte| char::from(byte)).collect::<String>())?;
                blob.into_js(ctx)
            }
        }
    }
}

impl<'js> FromJs<'js> for Message {
    fn from_js(ctx: &Ctx<'js>, value: Value<'js>) -> rquickjs::Result<Self> {
        match value.as_object() {
            Some(blob) => Ok(Self::Binary(blob.get::<_, String>("content")?.chars().map(|byte| byte as u8).collect())),
            None => Ok(Self::Text(String::from_js(ctx, value)?)),
        }
    }
}

impl<'js> FromJs<'js> for Action {
    fn from_js(_ctx: &Ctx<'js>, value: Value<'js>) -> rquickjs::Result<Self> {
        let parts = value.into_array().expect("an action");
        let name: String = parts.get(0)?;
        Ok(match &*name {
            "send" | "check" => Self::Send(parts.get(1)?),
            "answered" => Self::Answered,
            "deliver" => Self::Deliver(parts.get(1)?),
            "drop" => Self::Drop,
            "lost" => Self::Lost,
            "retry" => Self::Retry,
            "resumed" => Self::Resumed,
            "greeted" => Self::Greeted,
            "died" => Self::Died,
            "ended" => Self::Ended,
            "end" => Self::End(parts.get::<Object>(1)?.get("code")?),
            other => panic!("an unknown action: {other}"),
        })
    }
}

impl<'js> Script<'js> {
    pub(super) fn new(ctx: &Ctx<'js>) -> Self {
        Self(ctx.eval(format!("{SCRIPT}\n() => new End()")).expect("the script"))
    }

    /// A page on a new connection.
    pub(super) fn open(&self) -> Page<'js> {
        Page(self.0.call(()).expect("an end"))
    }
}

impl<'js> Page<'js> {
    pub(super) fn send(&self, message: &Message, now_ms: u64) -> Vec<Action> {
        self.actions("send", (This(self.0.clone()), message, now_ms as f64))
    }

    pub(super) fn check(&self) -> Vec<Action> {
        self.actions("check", (This(self.0.clone()),))
    }

    pub(super) fn on_message(&self, message: &Message, now_ms: u64) -> Vec<Action> {
        self.actions("onMessage", (This(self.0.clone()), message, now_ms as f64))
    }

    pub(super) fn on_lost(&self, now_ms: u64) -> Vec<Action> {
        self.actions("onLost", (This(self.0.clone()), now_ms as f64))
    }

    pub(super) fn on_silent(&self, now_ms: u64) -> Vec<Action> {
        self.actions("onSilent", (This(self.0.clone()), now_ms as f64))
    }

    pub(super) fn on_close(&self, code: u16, now_ms: u64) -> Vec<Action> {
        let close = Object::new(self.0.ctx().clone()).expect("an object");
        close.set("code", code).expect("a property");
        self.actions("onClose", (This(self.0.clone()), close, now_ms as f64))
    }

    pub(super) fn on_frontend_close(&self) -> Vec<Action> {
        self.actions("onFrontendClose", (This(self.0.clone()),))
    }

    /// The subprotocol of another leg.
    pub(super) fn attempt(&self) -> String {
        self.call("attempt", (This(self.0.clone()),))
    }

    pub(super) fn state(&self) -> String {
        self.0.get("state").expect("a string")
    }

    pub(super) fn kept_bytes(&self) -> usize {
        self.0.get("keptBytes").expect("a number")
    }

    fn actions(&self, method: &str, args: impl IntoArgs<'js>) -> Vec<Action> {
        let actions: Array = self.call(method, args);
        actions.iter().collect::<rquickjs::Result<_>>().expect("actions")
    }

    fn call<R: FromJs<'js>>(&self, method: &str, args: impl IntoArgs<'js>) -> R {
        let method: Function = self.0.get(method).expect("a method");
        method.call(args).unwrap_or_else(|_error| panic!("{:?}", self.0.ctx().catch()))
    }
}
