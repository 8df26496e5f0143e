//! Named places where a test may end the process. Shipped programs compile them to nothing.

/// A place where a test may inject a crash, with [`fail::cfg_callback`] and the feature `failpoints`.
///
/// [`fail::cfg_callback`]: https://docs.rs/fail/0.5/fail/fn.cfg_callback.html
#[inline]
pub fn failpoint(name: &str) {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(name);
    #[cfg(not(feature = "failpoints"))]
    let _: &str = name;
}
