//! The methods and status classes of plain HTTP as label values.

use super::per_label::labels;

labels! {
    /// The request methods that have a series of their own.
    pub(super) enum Method {
        Get = "GET",
        Head = "HEAD",
        Post = "POST",
        Put = "PUT",
        Patch = "PATCH",
        Delete = "DELETE",
        Options = "OPTIONS",
        Other = "other",
    }

    /// The first digit of a response's status code.
    pub(super) enum StatusClass {
        Successful = "2xx",
        Redirection = "3xx",
        ClientError = "4xx",
        ServerError = "5xx",
    }
}

impl From<&http::Method> for Method {
    fn from(method: &http::Method) -> Self {
        match *method {
            http::Method::GET => Self::Get,
            http::Method::HEAD => Self::Head,
            http::Method::POST => Self::Post,
            http::Method::PUT => Self::Put,
            http::Method::PATCH => Self::Patch,
            http::Method::DELETE => Self::Delete,
            http::Method::OPTIONS => Self::Options,
            _ => Self::Other,
        }
    }
}

impl From<http::StatusCode> for StatusClass {
    /// Codes above 599 count as 5xx, as RFC 9110 §15 requires of clients. A final response is never 1xx.
    fn from(code: http::StatusCode) -> Self {
        match code.as_u16() {
            ..300 => Self::Successful,
            300..400 => Self::Redirection,
            400..500 => Self::ClientError,
            500.. => Self::ServerError,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::per_label::{LabelValue as _, assert_consistent};
    use super::*;

    #[test]
    fn every_value_has_a_unique_name_and_index() {
        assert_consistent::<Method>();
        assert_consistent::<StatusClass>();
    }

    #[test]
    fn an_invalid_status_code_counts_as_5xx() {
        let class = |code| StatusClass::from(http::StatusCode::from_u16(code).unwrap()).name();
        assert_eq!([204, 304, 404, 503, 999].map(class), ["2xx", "3xx", "4xx", "5xx", "5xx"]);
    }

    #[test]
    fn an_unknown_method_is_other() {
        assert_eq!(Method::from(&http::Method::PATCH), Method::Patch);
        assert_eq!(Method::from(&http::Method::from_bytes(b"BREW").unwrap()), Method::Other);
    }
}
