//! How soon the providers of each app report what became of its messages. One whose reports have grown slow is asked after the
//! app's others ([`super::route`]).
//!
//! A worker learns it from deliveries that it follows, of each provider of an app one at a time. A provider is judged only after
//! it has reported several messages in a row in time, so one that has nowhere to report to is never slow. Nothing is kept or
//! shared: a worker that was restarted learns again.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shared::{id::AppId, provider::Provider};

/// The reports in time that are remembered. Without as many in a row a provider is not judged.
const SAMPLES: usize = 8;

/// Reports in a row that are late or missing make a provider slow. Single handsets are off and single mailboxes are greylisted.
const LATE_IN_A_ROW: u32 = 3;

/// Reports in a row that came in time end it.
const IN_TIME_IN_A_ROW: u32 = 2;

/// A report is late after this many times the median of those that came in time.
const LATE_AFTER_MEDIANS: u32 = 5;

/// A report that comes within this time is never late.
const LATE_AFTER_MIN: Duration = Duration::from_mins(1);

/// No report is awaited for longer than this.
const LATE_AFTER_MAX: Duration = Duration::from_mins(10);

/// The pause between two deliveries that are followed.
const PAUSE: Duration = Duration::from_secs(10);

/// The same for a provider that has not reported in time lately; it may have nowhere to report to.
const PAUSE_IF_SILENT: Duration = Duration::from_mins(5);

/// What is known of every provider of every app whose deliveries were followed.
#[derive(Debug, Default)]
pub(super) struct Reports(Mutex<HashMap<AppId, BTreeMap<Provider, Record>>>);

/// What is known of one provider of one app.
#[derive(Debug, Default)]
struct Record {
    is_followed: bool,
    is_slow: bool,
    /// How long the newest reports in time took.
    in_time: VecDeque<Duration>,
    late_in_a_row: u32,
    in_time_in_a_row: u32,
}

/// A delivery whose report is awaited. While it exists, no other delivery of this provider for this app is followed.
#[derive(Debug)]
pub struct Followed {
    reports: Arc<Reports>,
    app: AppId,
    provider: Provider,
    within: Duration,
}

impl Reports {
    /// Begins to follow a delivery of `app` that `provider` has taken, unless another is followed.
    pub(super) fn follow(self: &Arc<Self>, app: &AppId, provider: Provider) -> Option<Followed> {
        let mut all = self.lock();
        if !all.contains_key(app) {
            all.insert(app.clone(), BTreeMap::new());
        }
        let record = all.get_mut(app)?.entry(provider).or_default();
        if record.is_followed {
            return None;
        }
        record.is_followed = true;
        Some(Followed {
            within: record.late_after(),
            reports: Arc::clone(self),
            app: app.clone(),
            provider,
        })
    }

    /// Whether the reports of `provider` have grown slow for `app`.
    pub(super) fn is_slow(&self, app: &AppId, provider: Provider) -> bool {
        provider.reports_arrival() && self.with(app, provider, |record| record.is_slow) == Some(true)
    }

    /// The number of apps for which each provider that reports is slow.
    pub(super) fn slow(&self) -> Vec<(Provider, usize)> {
        let all = self.lock();
        let of = |provider: &Provider| {
            let records = all.values().filter_map(|records| records.get(provider));
            (*provider, records.filter(|record| record.is_slow).count())
        };
        let reporting = Provider::ALL.iter().filter(|provider| provider.reports_arrival());
        reporting.map(of).collect()
    }

    /// Removes what is known of the providers of `app`.
    pub(super) fn forget(&self, app: &AppId) {
        self.lock().remove(app);
    }

    fn with<T>(&self, app: &AppId, provider: Provider, see: impl FnOnce(&mut Record) -> T) -> Option<T> {
        self.lock().get_mut(app)?.get_mut(&provider).map(see)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AppId, BTreeMap<Provider, Record>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Followed {
    /// How long to wait for the report.
    pub fn within(&self) -> Duration {
        self.within
    }

    /// Records how long after the provider's answer the first report came; `None` if none came [`Self::within`] the time. Returns
    /// how long to pause, holding this, before the next delivery is followed.
    pub fn learn(&self, waited: Option<Duration>) -> Duration {
        let Self { app, provider, .. } = self;
        let in_time = waited.filter(|waited| *waited <= self.within);
        let learned = self.reports.with(app, *provider, |record| {
            let was_slow = record.is_slow;
            record.learn(in_time);
            (was_slow, record.is_slow, record.in_time.is_empty())
        });
        match learned {
            Some((false, true, _)) => {
                let seconds = self.within.as_secs();
                tracing::warn!(%app, %provider, seconds, "reports about messages have grown slow; the app's other providers are asked first");
            }
            Some((true, false, _)) => {
                tracing::info!(%app, %provider, "reports about messages come in time again");
            }
            Some((_, _, true)) => return PAUSE_IF_SILENT,
            Some(_) | None => {}
        }
        PAUSE
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.reports
            .with(&self.app, self.provider, |record| record.is_followed = false);
    }
}

impl Record {
    /// When a report is late.
    fn late_after(&self) -> Duration {
        if !self.is_judged() {
            return LATE_AFTER_MAX;
        }
        let mut sorted: Vec<_> = self.in_time.iter().copied().collect();
        sorted.sort_unstable();
        let median = sorted[sorted.len() / 2];
        (median * LATE_AFTER_MEDIANS).clamp(LATE_AFTER_MIN, LATE_AFTER_MAX)
    }

    fn is_judged(&self) -> bool {
        self.in_time.len() == SAMPLES
    }

    /// Learns how long a report took that came in time, or that one did not.
    fn learn(&mut self, in_time: Option<Duration>) {
        let Some(took) = in_time else {
            self.in_time_in_a_row = 0;
            self.late_in_a_row += 1;
            if !self.is_judged() {
                self.in_time.clear();
            } else if self.late_in_a_row >= LATE_IN_A_ROW {
                self.is_slow = true;
            }
            return;
        };
        self.late_in_a_row = 0;
        self.in_time_in_a_row += 1;
        if self.is_slow && self.in_time_in_a_row >= IN_TIME_IN_A_ROW {
            // It must earn its judgement again. Otherwise a provider that reports on only some messages would turn all the time.
            *self = Self {
                is_followed: self.is_followed,
                ..Self::default()
            };
        }
        if self.is_judged() {
            self.in_time.pop_front();
        }
        self.in_time.push_back(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Option<Duration> = Some(Duration::from_secs(3));
    const NO_REPORT: Option<Duration> = None;

    fn app(id: &str) -> AppId {
        id.parse().unwrap()
    }

    /// Follows one delivery after the other, and returns after which of them the provider is slow.
    fn learn(reports: &Arc<Reports>, app: &AppId, all: &[Option<Duration>]) -> Vec<bool> {
        let each = all.iter().map(|waited| {
            reports.follow(app, Provider::Twilio).unwrap().learn(*waited);
            reports.is_slow(app, Provider::Twilio)
        });
        each.collect()
    }

    fn usually_quick(app: &AppId) -> Arc<Reports> {
        let reports = Arc::default();
        assert_eq!(learn(&reports, app, &[QUICK; 8]), [false; 8]);
        reports
    }

    #[test]
    fn three_late_reports_in_a_row_make_a_provider_slow_and_two_in_time_end_it() {
        let shop = app("shop");
        let reports = usually_quick(&shop);
        let late = [
            NO_REPORT, NO_REPORT, QUICK, NO_REPORT, NO_REPORT, NO_REPORT, QUICK, NO_REPORT, QUICK, QUICK,
        ];
        assert_eq!(
            learn(&reports, &shop, &late),
            [false, false, false, false, false, true, true, true, true, false]
        );
        // It is judged again only after eight reports in time in a row.
        assert_eq!(learn(&reports, &shop, &[NO_REPORT; 9]), [false; 9]);
        assert_eq!(learn(&reports, &shop, &[QUICK; 8]), [false; 8]);
        assert_eq!(learn(&reports, &shop, &[NO_REPORT; 3]), [false, false, true]);
    }

    #[test]
    fn a_provider_that_does_not_report_or_reports_only_about_some_messages_is_never_slow() {
        let shop = app("shop");
        let reports = Arc::default();
        assert_eq!(learn(&reports, &shop, &[NO_REPORT; 50]), [false; 50]);
        let some: Vec<_> = (0..100).map(|n| if n % 8 == 0 { NO_REPORT } else { QUICK }).collect();
        assert_eq!(learn(&reports, &shop, &some), [false; 100]);
        assert_eq!(learn(&reports, &shop, &[NO_REPORT; 50]), [false; 50]);
    }

    #[test]
    fn one_apps_reports_move_neither_another_apps_provider_nor_another_provider() {
        let (shop, bank) = (app("shop"), app("bank"));
        let reports = usually_quick(&shop);
        assert_eq!(learn(&reports, &bank, &[QUICK; 8]), [false; 8]);
        assert_eq!(learn(&reports, &bank, &[NO_REPORT; 3]), [false, false, true]);
        assert!(!reports.is_slow(&shop, Provider::Twilio) && !reports.is_slow(&bank, Provider::Vonage));
        // Nor does the place that one app's delivery takes.
        let followed = reports.follow(&bank, Provider::Twilio);
        assert!(followed.is_some() && reports.follow(&bank, Provider::Twilio).is_none());
        assert!(reports.follow(&shop, Provider::Twilio).is_some());
        let slow = reports.slow();
        assert!(
            slow.contains(&(Provider::Twilio, 1)) && slow.contains(&(Provider::Vonage, 0)),
            "{slow:?}"
        );
        reports.forget(&bank);
        assert!(!reports.is_slow(&bank, Provider::Twilio));
        assert_eq!(followed.unwrap().learn(NO_REPORT), PAUSE, "of an app that is gone");
        assert!(!reports.is_slow(&bank, Provider::Twilio));
    }

    #[test]
    fn what_is_late_depends_on_what_is_usual() {
        let late_after = |took: u64| {
            let (shop, reports) = (app("shop"), Arc::new(Reports::default()));
            learn(&reports, &shop, &[Some(Duration::from_secs(took)); 8]);
            reports.follow(&shop, Provider::Twilio).unwrap().within()
        };
        assert_eq!(late_after(1), Duration::from_mins(1));
        assert_eq!(late_after(30), Duration::from_secs(150));
        assert_eq!(late_after(200), Duration::from_mins(10));
        let (shop, reports) = (app("shop"), Arc::new(Reports::default()));
        let first = reports.follow(&shop, Provider::Twilio).unwrap();
        assert_eq!(first.within(), Duration::from_mins(10), "nothing is usual yet");
        assert_eq!(first.learn(QUICK), PAUSE);
        assert_eq!(first.learn(Some(Duration::from_secs(601))), PAUSE_IF_SILENT);
    }

    #[test]
    fn who_is_not_known_to_report_every_arrival_is_not_slow() {
        let (shop, reports) = (app("shop"), Arc::new(Reports::default()));
        for learned in [QUICK; 8].into_iter().chain([NO_REPORT; 3]) {
            reports.follow(&shop, Provider::Smtp).unwrap().learn(learned);
        }
        assert!(!reports.is_slow(&shop, Provider::Smtp));
    }
}
