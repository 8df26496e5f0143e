//! Medians, quantiles and rates.

use std::time::Duration;

use serde::Serialize;

/// The median and the extremes of repeated measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// All zero if there are no values.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or_default();
        let half = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(at(half.saturating_sub(1)), at(half))
        } else {
            at(half)
        };
        Self {
            median,
            min: at(0),
            max: at(values.len().saturating_sub(1)),
        }
    }
}

/// Median and 99th percentile of latencies, microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Latency {
    pub(super) p50_us: u32,
    pub(super) p99_us: u32,
}

impl Latency {
    pub(super) fn of(mut microseconds: Vec<u32>) -> Self {
        microseconds.sort_unstable();
        let last = microseconds.len().saturating_sub(1);
        let at = |percent: usize| {
            microseconds
                .get((last * percent).div_ceil(100))
                .copied()
                .unwrap_or_default()
        };
        Self {
            p50_us: at(50),
            p99_us: at(99),
        }
    }
}

/// A count as a floating-point number.
pub(super) fn float(count: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "no count here is near 2^53")]
    let float = count as f64;
    float
}

/// Events a second.
pub(super) fn rate(count: u64, took: Duration) -> f64 {
    float(count) / took.as_secs_f64().max(f64::EPSILON)
}

/// The rate of a system that does both of two things on the same machine: S = 1 ÷ (1/a + 1/b).
pub(super) fn in_series(a: f64, b: f64) -> f64 {
    1.0 / (1.0 / a + 1.0 / b)
}

/// Whole microseconds, at max `u32::MAX` (71 minutes).
pub(super) fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_value_or_the_mean_of_the_two_middle_values() {
        assert_eq!(
            Spread::of([3.0, 1.0, 2.0]),
            Spread {
                median: 2.0,
                min: 1.0,
                max: 3.0
            }
        );
        assert_eq!(
            Spread::of([4.0, 1.0]),
            Spread {
                median: 2.5,
                min: 1.0,
                max: 4.0
            }
        );
        assert_eq!(
            Spread::of([]),
            Spread {
                median: 0.0,
                min: 0.0,
                max: 0.0
            }
        );
    }

    #[test]
    fn quantiles_are_measured_values() {
        assert_eq!(
            Latency::of((1..=100).rev().collect()),
            Latency {
                p50_us: 51,
                p99_us: 100
            }
        );
        assert_eq!(Latency::of(vec![7]), Latency { p50_us: 7, p99_us: 7 });
        assert_eq!(Latency::of(Vec::new()), Latency::default());
    }

    #[test]
    fn two_equal_parts_in_series_reach_half_the_rate() {
        assert!((in_series(10.0, 10.0) - 5.0).abs() < 1e-9);
    }
}
