//! Label values: closed sets of names, and the arrays of handles that they index.

use std::marker::PhantomData;

use crate::heartbeat::{AckOrigin, Withheld};
use crate::streamlit::messages::{BackType, ForwardType, ScriptResult};

/// A closed set of label values.
pub trait LabelValue: Copy + 'static {
    /// Every value, in the order of [`LabelValue::index`].
    const ALL: &'static [Self];

    /// The value's name in Prometheus.
    fn name(self) -> &'static str;

    /// The value's position in [`LabelValue::ALL`].
    fn index(self) -> usize;
}

/// One handle per label value; nested, one per pair of values. Reading it is one index operation.
pub(super) struct PerLabel<L, H> {
    handles: Box<[H]>,
    label: PhantomData<L>,
}

/// Defines enums whose variants are label values with these names.
macro_rules! labels {
    ($($(#[$meta:meta])* $visibility:vis enum $label:ident {
        $($(#[$variant_meta:meta])* $variant:ident = $name:literal,)*
    })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $visibility enum $label { $($(#[$variant_meta])* $variant,)* }

        $crate::metrics::per_label::label_names! { $label { $($variant = $name,)* } }
    )*};
}

/// Makes label values of an existing enum, with a name per variant.
macro_rules! label_names {
    ($label:ty { $($variant:ident = $name:literal,)* }) => {
        impl $crate::metrics::per_label::LabelValue for $label {
            const ALL: &'static [Self] = &[$(Self::$variant),*];

            fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

/// Makes label values of enums that list and name their variants themselves.
macro_rules! listed_labels {
    ($($label:ty)*) => {$(
        impl LabelValue for $label {
            const ALL: &'static [Self] = <$label>::ALL;

            fn name(self) -> &'static str {
                <$label>::name(self)
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    )*};
}

pub(super) use {label_names, labels};

label_names! { AckOrigin { Sidecar = "sidecar", Upstream = "upstream", } }
label_names! {
    Withheld { UpstreamStalled = "upstream_stalled", UpstreamClosed = "upstream_closed", Policy = "policy", }
}
listed_labels! { BackType ForwardType ScriptResult }

impl<L: LabelValue, H> PerLabel<L, H> {
    /// Makes every handle up front.
    pub(super) fn new(handle: impl FnMut(L) -> H) -> Self {
        Self { handles: L::ALL.iter().copied().map(handle).collect(), label: PhantomData }
    }

    /// The handle of one value.
    pub(super) fn get(&self, label: L) -> &H {
        &self.handles[label.index()]
    }
}

/// Asserts that names are unique and that each value is at its index.
#[cfg(test)]
#[track_caller]
pub(super) fn assert_consistent<L: LabelValue + std::fmt::Debug>() {
    assert!(!L::ALL.is_empty());
    let names: std::collections::HashSet<_> = L::ALL.iter().map(|label| label.name()).collect();
    assert_eq!(names.len(), L::ALL.len(), "{names:?}");
    for (position, label) in L::ALL.iter().enumerate() {
        assert_eq!(label.index(), position, "{label:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_unique_name_and_index() {
        assert_consistent::<AckOrigin>();
        assert_consistent::<Withheld>();
        assert_consistent::<BackType>();
        assert_consistent::<ForwardType>();
        assert_consistent::<ScriptResult>();
    }
}
