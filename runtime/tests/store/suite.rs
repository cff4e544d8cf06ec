//! What every store of a server ensures. Each kind of store runs all of this through [`suite`].

use pi_core::SecretBytes;
use pi_protocol::session::{BundleId, BundleSource};
use pi_runtime::fingerprint::Fingerprint;
use pi_runtime::store::{AnswerLimits, BundleState, ServerStore, StoreError, Usage};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A place with one store, at first a new one.
pub(crate) trait Place: Sized {
    /// `None` if there is nothing here to make it with.
    fn new() -> Option<Self>;

    /// Opens the store; it was closed before.
    fn open(&self) -> Box<dyn ServerStore>;

    /// Number of contents of bundles there, parts of such included.
    fn contents(&self) -> usize;
}

/// Runs every test of this file for a kind of [`Place`].
macro_rules! suite {
    ($place:ty: $($name:ident)*) => {$(
        #[test]
        fn $name() {
            if let Some(place) = <$place as suite::Place>::new() {
                suite::$name(&place);
            }
        }
    )*};
    ($place:ty) => {
        suite!($place:
            a_bundle_is_spent_once_and_stays_spent_after_reopening
            a_name_is_never_stored_twice
            bundles_of_another_client_or_model_are_unknown
            one_spender_wins_among_many_threads
            orphans_are_given_up_and_the_others_kept
            a_half_is_kept_in_full_or_not_at_all
            a_content_is_read_from_its_beginning_to_its_end
            contents_of_any_length_come_back
            reading_ahead_spends_nothing_and_spending_ends_it
            answers_are_counted_for_good_and_never_beyond_the_limit
            answers_of_a_day_end_with_it_and_a_clock_that_steps_back_gives_nothing
            accounts_of_one_client_are_counted_apart
            bytes_are_counted_by_the_day
            a_setup_is_kept_and_replaced
            a_client_that_is_forgotten_keeps_its_counts_alone
            a_store_belongs_to_who_came_first
            bundles_at_rest_are_counted_by_their_model
        );
    };
}

pub(crate) const CLIENT: Fingerprint = Fingerprint([1; 32]);
pub(crate) const OTHER: Fingerprint = Fingerprint([2; 32]);
pub(crate) const MODEL: [u8; 32] = [7; 32];
const ACCOUNT: &str = "model";
const UNLIMITED: AnswerLimits = AnswerLimits {
    ever: None,
    per_day: None,
};

pub(crate) fn id(n: u8) -> BundleId {
    BundleId([n; 32])
}

pub(crate) fn put(
    store: &dyn ServerStore,
    client: Fingerprint,
    id: &BundleId,
    content: &[u8],
) -> Result<(), StoreError> {
    let mut writer = store.bundle_writer(client, id)?;
    writer.append(content)?;
    writer.keep(&MODEL)
}

pub(crate) fn spend(
    store: &dyn ServerStore,
    client: Fingerprint,
    id: &BundleId,
) -> Result<(), StoreError> {
    store.spend_on_answer(client, id, ACCOUNT, &UNLIMITED, 20_000)
}

/// Marks a bundle as spent and returns its content, in the order in which a server does it.
pub(crate) fn take(
    store: &dyn ServerStore,
    client: Fingerprint,
    id: &BundleId,
) -> Result<SecretBytes, StoreError> {
    let content = store.content(client, id)?;
    spend(store, client, id)?;
    content.run()
}

fn is_spent<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Spent(_)))
}

fn is_unknown<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Unknown(_)))
}

fn exists<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Exists(_)))
}

pub(crate) fn a_bundle_is_spent_once_and_stays_spent_after_reopening(place: &impl Place) {
    let store = place.open();
    put(&*store, CLIENT, &id(3), b"secret").unwrap();
    drop(store);

    let store = place.open();
    assert_eq!(store.ready(CLIENT, &MODEL).unwrap(), [id(3)]);
    let content = take(&*store, CLIENT, &id(3)).unwrap();
    assert_eq!(content.as_slice(), b"secret");
    assert!(is_spent(&take(&*store, CLIENT, &id(3))));
    drop(store);

    // Without `erase`, as after a crash: opening erases the content, the mark stays.
    let store = place.open();
    assert_eq!(place.contents(), 0);
    assert!(is_spent(&take(&*store, CLIENT, &id(3))));
    assert!(is_spent(&spend(&*store, CLIENT, &id(3))));
    let entry = store.bundle(CLIENT, &id(3)).unwrap().unwrap();
    assert_eq!(entry.state, BundleState::Spent);
    assert_eq!(store.bundles().unwrap(), [entry]);
    assert!(store.ready(CLIENT, &MODEL).unwrap().is_empty());
}

pub(crate) fn a_name_is_never_stored_twice(place: &impl Place) {
    let store = place.open();
    put(&*store, CLIENT, &id(1), b"first").unwrap();
    assert!(exists(&put(&*store, CLIENT, &id(1), b"second")));
    let content = take(&*store, CLIENT, &id(1)).unwrap();
    assert_eq!(content.as_slice(), b"first");
    store.erase(CLIENT, &id(1)).unwrap();
    assert!(exists(&put(&*store, CLIENT, &id(1), b"third")));
    assert_eq!(place.contents(), 0);
    // Another client's names are its own.
    put(&*store, OTHER, &id(1), b"other").unwrap();
    let content = take(&*store, OTHER, &id(1)).unwrap();
    assert_eq!(content.as_slice(), b"other");
}

pub(crate) fn bundles_of_another_client_or_model_are_unknown(place: &impl Place) {
    let store = place.open();
    put(&*store, CLIENT, &id(1), b"x").unwrap();
    for (client, id) in [(OTHER, id(1)), (CLIENT, id(2))] {
        assert!(is_unknown(&take(&*store, client, &id)));
        assert!(is_unknown(&spend(&*store, client, &id)));
        assert!(store.bundle(client, &id).unwrap().is_none());
        // A refused answer is not counted.
        let used = store.usage(client, ACCOUNT, 20_000).unwrap();
        assert_eq!(used, Usage::default());
    }
    assert!(store.ready(CLIENT, &[8; 32]).unwrap().is_empty());
    assert!(store.ready(OTHER, &MODEL).unwrap().is_empty());
    take(&*store, CLIENT, &id(1)).unwrap();
}

pub(crate) fn one_spender_wins_among_many_threads(place: &impl Place) {
    let store = place.open();
    for n in 0..8 {
        put(&*store, CLIENT, &id(n), b"x").unwrap();
    }
    let taken = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..8 {
                    match take(&*store, CLIENT, &id(n)) {
                        Ok(_) => drop(taken.fetch_add(1, Ordering::SeqCst)),
                        Err(StoreError::Spent(_)) => {}
                        Err(e) => panic!("{e}"),
                    }
                }
            });
        }
    });
    assert_eq!(taken.into_inner(), 8);
    assert_eq!(store.usage(CLIENT, ACCOUNT, 0).unwrap().answers, 8);
}

pub(crate) fn orphans_are_given_up_and_the_others_kept(place: &impl Place) {
    let store = place.open();
    for n in 0..4 {
        put(&*store, CLIENT, &id(n), &[n; 100]).unwrap();
    }
    put(&*store, OTHER, &id(9), b"other").unwrap();
    let ready = store.ready_of(CLIENT).unwrap();
    assert_eq!(ready, (0..4).map(id).collect());
    // One that is made meanwhile, and one that there never was.
    put(&*store, CLIENT, &id(4), &[4; 100]).unwrap();
    let orphans = HashSet::from([id(0), id(2), id(200)]);
    assert_eq!(store.discard(CLIENT, &orphans).unwrap(), 2);
    assert_eq!(store.ready(CLIENT, &MODEL).unwrap(), [id(1), id(3), id(4)]);
    assert_eq!(store.ready(OTHER, &MODEL).unwrap(), [id(9)]);
    assert!(is_spent(&take(&*store, CLIENT, &id(0))));
    assert_eq!(place.contents(), 4);
    assert_eq!(store.discard(CLIENT, &orphans).unwrap(), 0);
    assert_eq!(store.usage(CLIENT, ACCOUNT, 0).unwrap(), Usage::default());
}

/// A half is no bundle before it is kept, and nothing of one that is not kept stays.
pub(crate) fn a_half_is_kept_in_full_or_not_at_all(place: &impl Place) {
    let store = place.open();
    let mut writer = store.bundle_writer(CLIENT, &id(1)).unwrap();
    writer.append(b"first ").unwrap();
    assert!(store.bundles().unwrap().is_empty());
    assert!(exists(&store.bundle_writer(CLIENT, &id(1))));
    assert!(is_unknown(&store.content(CLIENT, &id(1))));
    drop(writer);
    assert_eq!(place.contents(), 0);

    let mut writer = store.bundle_writer(CLIENT, &id(1)).unwrap();
    for part in [&b"sec"[..], b"", b"ond"] {
        writer.write(part).unwrap();
    }
    assert!(writer.take_failure().is_none());
    writer.keep(&MODEL).unwrap();
    assert_eq!(store.ready(CLIENT, &MODEL).unwrap(), [id(1)]);
    let content = take(&*store, CLIENT, &id(1)).unwrap();
    assert_eq!(content.as_slice(), b"second");
    assert!(exists(&store.bundle_writer(CLIENT, &id(1))));
}

pub(crate) fn a_content_is_read_from_its_beginning_to_its_end(place: &impl Place) {
    let store = place.open();
    put(&*store, CLIENT, &id(1), b"content").unwrap();
    let content = store.content(CLIENT, &id(1)).unwrap();
    assert_eq!(content.length(), 7);
    let mut source = content.open().unwrap();
    assert_eq!(source.read(3).unwrap(), b"con");
    assert_eq!(source.read(0).unwrap(), b"");
    assert!(source.end().is_err(), "four bytes are left");
    assert_eq!(source.read(4).unwrap(), b"tent");
    source.end().unwrap();
    assert!(source.read(1).is_err());
    // No more is reserved than there is.
    let content = store.content(CLIENT, &id(1)).unwrap();
    assert!(content.open().unwrap().read(usize::MAX).is_err());
}

pub(crate) fn contents_of_any_length_come_back(place: &impl Place) {
    let store = place.open();
    // Around what a store may write or encrypt at a time.
    let lengths = [
        0,
        1,
        65_535,
        65_536,
        65_537,
        1 << 20,
        (1 << 20) + 1,
        9 << 20,
    ];
    for (n, length) in (0..).zip(lengths) {
        let content: Vec<u8> = (0..length).map(|i: u32| (i * 7 + i / 251) as u8).collect();
        let mut writer = store.bundle_writer(CLIENT, &id(n)).unwrap();
        for part in content.chunks(100_003) {
            writer.append(part).unwrap();
        }
        writer.keep(&MODEL).unwrap();
        let reading = store.content(CLIENT, &id(n)).unwrap();
        assert_eq!(reading.length(), u64::from(length));
        assert!(reading.run().unwrap().as_slice() == content, "{length}");
        let mut source = store.content(CLIENT, &id(n)).unwrap().open().unwrap();
        for part in content.chunks(77_777) {
            assert!(source.read(part.len()).unwrap() == part, "{length}");
        }
        source.end().unwrap();
    }
}

pub(crate) fn reading_ahead_spends_nothing_and_spending_ends_it(place: &impl Place) {
    let store = place.open();
    put(&*store, CLIENT, &id(1), b"content").unwrap();
    for _ in 0..2 {
        let content = store.content(CLIENT, &id(1)).unwrap();
        assert_eq!(content.run().unwrap().as_slice(), b"content");
    }
    assert_eq!(store.ready(CLIENT, &MODEL).unwrap(), [id(1)]);
    let begun = store.content(CLIENT, &id(1)).unwrap();
    spend(&*store, CLIENT, &id(1)).unwrap();
    // Who began before the mark may end after it: the mark is one thing, reading another.
    assert_eq!(begun.run().unwrap().as_slice(), b"content");
    assert!(is_spent(&store.content(CLIENT, &id(1))));
    assert!(is_spent(&spend(&*store, CLIENT, &id(1))));
    assert!(is_unknown(&store.content(CLIENT, &id(2))));
    store.erase(CLIENT, &id(1)).unwrap();
    store.erase(CLIENT, &id(1)).unwrap();
    assert_eq!(place.contents(), 0);
}

/// Spends these bundles at once, and returns how many were refused by a limit.
fn spend_all(store: &dyn ServerStore, ids: Range<u8>, limits: AnswerLimits, day: u64) -> usize {
    std::thread::scope(|scope| {
        let spend = |n| move || store.spend_on_answer(CLIENT, &id(n), ACCOUNT, &limits, day);
        let threads: Vec<_> = ids.map(|n| scope.spawn(spend(n))).collect();
        let results = threads.into_iter().map(|thread| thread.join().unwrap());
        let (_, refused): (Vec<_>, Vec<_>) = results.partition(Result::is_ok);
        for refusal in &refused {
            let error = refusal.as_ref().unwrap_err();
            match *error {
                StoreError::AnswersUsed(limit) => assert_eq!(Some(limit), limits.ever),
                StoreError::AnswersUsedToday(limit) => assert_eq!(Some(limit), limits.per_day),
                _ => panic!("{error}"),
            }
        }
        refused.len()
    })
}

/// Of any number of threads, before and after a restart, as many get an answer as the limit says;
/// the others leave their bundles as they are.
pub(crate) fn answers_are_counted_for_good_and_never_beyond_the_limit(place: &impl Place) {
    let store = place.open();
    for n in 0..24 {
        put(&*store, CLIENT, &id(n), b"x").unwrap();
    }
    put(&*store, OTHER, &id(0), b"x").unwrap();
    let ever = |limit| AnswerLimits {
        ever: Some(limit),
        per_day: None,
    };
    assert_eq!(spend_all(&*store, 0..8, ever(5), 1), 3);
    assert_eq!(store.usage(CLIENT, ACCOUNT, 1).unwrap().answers, 5);
    drop(store);
    let store = place.open();
    assert_eq!(spend_all(&*store, 8..16, ever(5), 2), 8);
    assert_eq!(spend_all(&*store, 16..24, ever(7), 3), 6);
    assert_eq!(store.usage(CLIENT, ACCOUNT, 3).unwrap().answers, 7);
    assert_eq!(store.ready(CLIENT, &MODEL).unwrap().len(), 24 - 7);
    // A bundle that is spent already counts no second answer; another client has its own count.
    spend(&*store, OTHER, &id(0)).unwrap();
    assert!(is_spent(&spend(&*store, OTHER, &id(0))));
    assert_eq!(store.usage(OTHER, ACCOUNT, 3).unwrap().answers, 1);
}

pub(crate) fn answers_of_a_day_end_with_it_and_a_clock_that_steps_back_gives_nothing(
    place: &impl Place,
) {
    let store = place.open();
    for n in 0..16 {
        put(&*store, CLIENT, &id(n), b"x").unwrap();
    }
    let limits = AnswerLimits {
        ever: Some(5),
        per_day: Some(2),
    };
    let used = |day| {
        let used = store.usage(CLIENT, ACCOUNT, day).unwrap();
        (used.answers, used.answers_today)
    };
    assert_eq!(spend_all(&*store, 0..4, limits, 100), 2);
    assert_eq!(used(100), (2, 2));
    assert_eq!(used(101), (2, 0));
    // Two of the four are ready still; yesterday's clock has none for them.
    let error = store.spend_on_answer(CLIENT, &id(4), ACCOUNT, &limits, 99);
    assert!(matches!(error, Err(StoreError::AnswersUsedToday(2))));
    assert_eq!(used(99), (2, 2));
    assert_eq!(spend_all(&*store, 4..8, limits, 101), 2);
    let error = store.spend_on_answer(CLIENT, &id(8), ACCOUNT, &limits, 100);
    assert!(matches!(error, Err(StoreError::AnswersUsedToday(2))));
    // The limit for ever comes first.
    assert_eq!(spend_all(&*store, 8..12, limits, 102), 3);
    let error = store.spend_on_answer(CLIENT, &id(12), ACCOUNT, &limits, 103);
    assert!(matches!(error, Err(StoreError::AnswersUsed(5))));
    assert_eq!(used(103), (5, 0));
    assert_eq!(store.ready(CLIENT, &MODEL).unwrap().len(), 16 - 5);
}

pub(crate) fn accounts_of_one_client_are_counted_apart(place: &impl Place) {
    let store = place.open();
    for n in 0..4 {
        put(&*store, CLIENT, &id(n), b"x").unwrap();
    }
    let limits = AnswerLimits {
        ever: Some(1),
        per_day: None,
    };
    let spend = |n, account| store.spend_on_answer(CLIENT, &id(n), account, &limits, 1);
    spend(0, "digits 1").unwrap();
    assert!(matches!(
        spend(1, "digits 1"),
        Err(StoreError::AnswersUsed(1))
    ));
    spend(1, "digits 2").unwrap();
    spend(2, "").unwrap();
    let answers = |account| store.usage(CLIENT, account, 1).unwrap().answers;
    let counts = ["digits 1", "digits 2", "", "digits"].map(answers);
    assert_eq!(counts, [1, 1, 1, 0]);
    assert_eq!(store.usage(OTHER, "digits 1", 1).unwrap().answers, 0);
}

pub(crate) fn bytes_are_counted_by_the_day(place: &impl Place) {
    let store = place.open();
    let used = |day| store.usage(CLIENT, ACCOUNT, day).unwrap().bytes_today;
    assert_eq!(used(5), 0);
    store.add_bytes(CLIENT, ACCOUNT, 5, 1 << 40).unwrap();
    store.add_bytes(CLIENT, ACCOUNT, 5, 1).unwrap();
    assert_eq!(
        (used(4), used(5), used(6)),
        ((1 << 40) + 1, (1 << 40) + 1, 0)
    );
    // Yesterday's clock counts for the day recorded.
    store.add_bytes(CLIENT, ACCOUNT, 4, 1).unwrap();
    assert_eq!(used(5), (1 << 40) + 2);
    store.add_bytes(CLIENT, ACCOUNT, 6, 3).unwrap();
    assert_eq!(used(6), 3);
    assert_eq!(store.usage(OTHER, ACCOUNT, 6).unwrap(), Usage::default());
}

pub(crate) fn a_setup_is_kept_and_replaced(place: &impl Place) {
    let store = place.open();
    assert!(store.setup(CLIENT).unwrap().is_none());
    let big = vec![9; 5 << 20];
    store.put_setup(CLIENT, &[6; 32], b"old").unwrap();
    store.put_setup(CLIENT, &[7; 32], &big).unwrap();
    store.put_setup(CLIENT, &[7; 32], &big).unwrap();
    drop(store);
    let store = place.open();
    assert!(store.setup(CLIENT).unwrap().unwrap().as_slice() == big);
    assert_eq!(store.setup_id(CLIENT).unwrap(), Some([7; 32]));
    assert_eq!(store.setup_id(OTHER).unwrap(), None);
    // One that an older version made is there and is none.
    store.put_setup(OTHER, &[8; 32], &[0, 1, 2]).unwrap();
    assert_eq!(store.setup_id(OTHER).unwrap(), None);
    assert_eq!(store.setup(OTHER).unwrap().unwrap().as_slice(), [0, 1, 2]);
}

pub(crate) fn a_client_that_is_forgotten_keeps_its_counts_alone(place: &impl Place) {
    let store = place.open();
    assert!(store.clients().unwrap().is_empty());
    for n in 0..3 {
        put(&*store, CLIENT, &id(n), b"x").unwrap();
    }
    store.put_setup(CLIENT, &[6; 32], b"setup").unwrap();
    store.put_setup(OTHER, &[6; 32], b"setup").unwrap();
    let third = Fingerprint([3; 32]);
    put(&*store, third, &id(0), b"x").unwrap();
    assert_eq!(store.clients().unwrap(), [CLIENT, OTHER, third]);
    spend(&*store, CLIENT, &id(0)).unwrap();
    let used = store.usage(CLIENT, ACCOUNT, 20_000).unwrap();
    assert_eq!(used.answers, 1);

    assert_eq!(store.forget_client(CLIENT).unwrap(), 2);
    assert_eq!(store.clients().unwrap(), [OTHER, third]);
    assert!(store.setup(CLIENT).unwrap().is_none());
    for n in 0..3 {
        assert!(is_spent(&take(&*store, CLIENT, &id(n))));
    }
    assert_eq!(store.usage(CLIENT, ACCOUNT, 20_000).unwrap(), used);
    assert_eq!(store.forget_client(CLIENT).unwrap(), 0);
    // A client whose bundles are all spent has nothing here.
    spend(&*store, third, &id(0)).unwrap();
    assert_eq!(store.clients().unwrap(), [OTHER]);
    assert_eq!(store.ready(OTHER, &MODEL).unwrap(), []);
}

pub(crate) fn a_store_belongs_to_who_came_first(place: &impl Place) {
    let store = place.open();
    let answers: HashSet<Fingerprint> = std::thread::scope(|scope| {
        let store = &*store;
        let propose = |n| move || store.service(Fingerprint([n; 32])).unwrap();
        let threads: Vec<_> = (1..9).map(|n| scope.spawn(propose(n))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(answers.len(), 1);
    drop(store);
    let store = place.open();
    let again = store.service(Fingerprint([99; 32])).unwrap();
    assert!(answers.contains(&again));
}

pub(crate) fn bundles_at_rest_are_counted_by_their_model(place: &impl Place) {
    const SECOND: [u8; 32] = [8; 32];
    let store = place.open();
    store.probe().unwrap();
    assert!(store.at_rest().unwrap().is_empty());
    for n in 1..=3 {
        put(&*store, CLIENT, &id(n), b"half").unwrap();
    }
    put(&*store, OTHER, &id(1), b"half").unwrap();
    let mut writer = store.bundle_writer(OTHER, &id(2)).unwrap();
    writer.append(b"half").unwrap();
    writer.keep(&SECOND).unwrap();
    spend(&*store, CLIENT, &id(2)).unwrap();
    let expected = HashMap::from([(MODEL, 3), (SECOND, 1)]);
    assert_eq!(store.at_rest().unwrap(), expected);
    // One that was spent still counts.
    let expected = HashMap::from([(MODEL, 4), (SECOND, 1)]);
    assert_eq!(store.ever_kept().unwrap(), expected);
}
