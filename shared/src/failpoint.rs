//! Places with names where a test may end the process. In a program that is shipped they are nothing at all.

/// A crash may be wanted here. What happens is set with [`fail::cfg_callback`] where the feature `failpoints` is on.
///
/// [`fail::cfg_callback`]: https://docs.rs/fail/0.5/fail/fn.cfg_callback.html
#[inline]
pub fn failpoint(name: &str) {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(name);
    #[cfg(not(feature = "failpoints"))]
    let _: &str = name;
}
