//! The close codes of websocket connections as label values.

use super::per_label::labels;

labels! {
    /// The status code that a websocket connection ended with (RFC 6455 §7.4.1 and IANA's registry).
    pub enum CloseCode {
        /// 1000
        Normal = "1000",
        /// 1001
        GoingAway = "1001",
        /// 1002
        ProtocolError = "1002",
        /// 1003
        UnsupportedData = "1003",
        /// 1005: a Close frame without a code.
        NoStatus = "1005",
        /// 1006: no Close frame.
        Abnormal = "1006",
        /// 1007
        InvalidPayload = "1007",
        /// 1008
        PolicyViolation = "1008",
        /// 1009
        TooBig = "1009",
        /// 1010
        MandatoryExtension = "1010",
        /// 1011
        InternalError = "1011",
        /// 1012
        ServiceRestart = "1012",
        /// 1013
        TryAgainLater = "1013",
        /// 1014
        BadGateway = "1014",
        /// Any other code, including the private ones (3000 to 4999).
        Other = "other",
    }
}

impl From<Option<u16>> for CloseCode {
    /// The code in a Close frame, as [`crate::websocket::frame::close_code`] reads it.
    fn from(code: Option<u16>) -> Self {
        match code {
            Some(1000) => Self::Normal,
            Some(1001) => Self::GoingAway,
            Some(1002) => Self::ProtocolError,
            Some(1003) => Self::UnsupportedData,
            None => Self::NoStatus,
            Some(1007) => Self::InvalidPayload,
            Some(1008) => Self::PolicyViolation,
            Some(1009) => Self::TooBig,
            Some(1010) => Self::MandatoryExtension,
            Some(1011) => Self::InternalError,
            Some(1012) => Self::ServiceRestart,
            Some(1013) => Self::TryAgainLater,
            Some(1014) => Self::BadGateway,
            // RFC 6455 §7.4.1 forbids 1005, 1006 and 1015 in a frame: a peer that sends one means something else.
            Some(_) => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::per_label::{LabelValue as _, assert_consistent};
    use super::*;

    #[test]
    fn every_value_has_a_unique_name_and_index() {
        assert_consistent::<CloseCode>();
    }

    #[test]
    fn a_close_code_is_labelled_with_its_number() {
        for code in (1000..=1014).filter(|code| ![1004, 1005, 1006].contains(code)) {
            assert_eq!(CloseCode::from(Some(code)).name(), code.to_string());
        }
        assert_eq!(CloseCode::from(None).name(), "1005");
        assert_eq!(CloseCode::Abnormal.name(), "1006");
    }

    #[test]
    fn forbidden_unassigned_and_private_close_codes_are_other() {
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 3000, 4999, u16::MAX] {
            assert_eq!(CloseCode::from(Some(code)), CloseCode::Other, "{code}");
        }
    }
}
