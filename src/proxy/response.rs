//! The proxy's own responses.

use std::error::Error;
use std::fmt;

use http::header::{self, HeaderValue};
use http::{Response, StatusCode};

use super::body::ResponseBody;

/// Why the upstream gave no valid response; each has a response of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UpstreamFailure {
    /// Connecting to the upstream failed.
    Unreachable,
    /// The upstream's response is not valid, or its connection broke.
    InvalidResponse,
    /// The upstream takes too long.
    TimedOut,
}

impl UpstreamFailure {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Unreachable | Self::InvalidResponse => StatusCode::BAD_GATEWAY,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    pub(super) fn response(self) -> Response<ResponseBody> {
        let text = match self {
            Self::Unreachable => "502 Bad Gateway: cannot connect to the app\n",
            Self::InvalidResponse => "502 Bad Gateway: invalid response from the app\n",
            Self::TimedOut => "504 Gateway Timeout: the app did not respond in time\n",
        };
        plain_text(self.status(), text)
    }
}

/// Our own response, in plain text.
pub(super) fn plain_text(status: StatusCode, text: &'static str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::from(text));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// An error with its causes, for one log line.
pub(super) struct Chain<'a>(pub(super) &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)?;
        causes(self.0).skip(1).try_for_each(|cause| write!(formatter, ": {cause}"))
    }
}

/// An error and all its causes.
pub(super) fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}
