//! A bundle is used once, whatever happens; a store belongs to one process at a time.

use pi_core::SecretBytes;
use pi_protocol::session::{BundleId, BundleSink, BundleSource};
use pi_runtime::fingerprint::Fingerprint;
use pi_runtime::store::{BundleState, PeerRecord, Store, StoreError};
use std::collections::HashSet;
use std::path::Path;

const PEER: Fingerprint = Fingerprint([1; 32]);
const OTHER: Fingerprint = Fingerprint([2; 32]);
const MODEL: [u8; 32] = [7; 32];

fn id(n: u8) -> BundleId {
    BundleId([n; 32])
}

/// Marks a bundle as spent and returns its content, in the order in which the parties do it.
fn take(store: &Store, peer: Fingerprint, id: &BundleId) -> Result<SecretBytes, StoreError> {
    let reading = store.content(peer, id)?;
    store.spend(peer, id)?;
    reading.run()
}

fn contents(state: &Path) -> usize {
    std::fs::read_dir(state.join("bundles")).unwrap().count()
}

#[test]
fn a_bundle_is_taken_once_and_stays_spent_after_reopening() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    store.put_bundle(PEER, &MODEL, &id(3), b"secret").unwrap();
    drop(store);

    let store = Store::open(state.path()).unwrap();
    assert_eq!(store.ready(PEER, &MODEL).unwrap(), [id(3)]);
    assert_eq!(take(&store, PEER, &id(3)).unwrap().as_slice(), b"secret");
    assert!(matches!(
        take(&store, PEER, &id(3)),
        Err(StoreError::Spent(_))
    ));
    drop(store);

    // Without `erase`, as after a crash: opening erases the content, the mark stays.
    let store = Store::open(state.path()).unwrap();
    assert_eq!(contents(state.path()), 0);
    assert!(matches!(
        take(&store, PEER, &id(3)),
        Err(StoreError::Spent(_))
    ));
    let entry = store.bundle(PEER, &id(3)).unwrap().unwrap();
    assert_eq!(entry.state, BundleState::Spent);
    assert!(store.ready(PEER, &MODEL).unwrap().is_empty());
}

#[test]
fn a_name_is_never_stored_twice() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    store.put_bundle(PEER, &MODEL, &id(1), b"first").unwrap();
    let again = store.put_bundle(PEER, &MODEL, &id(1), b"second");
    assert!(matches!(again, Err(StoreError::Exists(_))));
    assert_eq!(take(&store, PEER, &id(1)).unwrap().as_slice(), b"first");
    store.erase(PEER, &id(1)).unwrap();
    let again = store.put_bundle(PEER, &MODEL, &id(1), b"third");
    assert!(matches!(again, Err(StoreError::Exists(_))));
    assert_eq!(contents(state.path()), 0);
}

#[test]
fn bundles_of_another_peer_or_model_are_unknown() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    store.put_bundle(PEER, &MODEL, &id(1), b"x").unwrap();
    assert!(matches!(
        take(&store, OTHER, &id(1)),
        Err(StoreError::Unknown(_))
    ));
    assert!(matches!(
        take(&store, PEER, &id(2)),
        Err(StoreError::Unknown(_))
    ));
    assert!(store.ready(PEER, &[8; 32]).unwrap().is_empty());
    assert!(store.ready(OTHER, &MODEL).unwrap().is_empty());
    take(&store, PEER, &id(1)).unwrap();
}

#[test]
fn one_taker_wins_among_many_threads() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    for n in 0..8 {
        store.put_bundle(PEER, &MODEL, &id(n), b"x").unwrap();
    }
    let taken = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..8 {
                    match take(&store, PEER, &id(n)) {
                        Ok(_) => {
                            taken.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        }
                        Err(StoreError::Spent(_)) => {}
                        Err(e) => panic!("{e}"),
                    }
                }
            });
        }
    });
    assert_eq!(taken.into_inner(), 8);
}

#[test]
fn orphans_are_given_up_and_the_others_kept() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    for n in 0..4 {
        store.put_bundle(PEER, &MODEL, &id(n), &[n; 100]).unwrap();
    }
    store.put_bundle(OTHER, &MODEL, &id(9), b"other").unwrap();
    let keep = HashSet::from([id(1), id(3), id(200)]);
    assert_eq!(store.discard_others(PEER, &keep).unwrap(), 2);
    assert_eq!(store.ready(PEER, &MODEL).unwrap(), [id(1), id(3)]);
    assert_eq!(store.ready(OTHER, &MODEL).unwrap(), [id(9)]);
    assert!(matches!(
        take(&store, PEER, &id(0)),
        Err(StoreError::Spent(_))
    ));
    assert_eq!(contents(state.path()), 3);
}

#[test]
fn a_second_process_is_told_that_the_store_is_locked() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    let second = Store::open(state.path()).err();
    assert!(matches!(second, Some(StoreError::Locked(_))));
    drop(store);
    Store::open(state.path()).unwrap();
}

#[test]
fn a_damaged_store_is_an_error_and_no_panic() {
    let state = tempfile::tempdir().unwrap();
    std::fs::write(state.path().join("store.redb"), vec![0x5a; 8192]).unwrap();
    let error = Store::open(state.path()).err().expect("damaged");
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}

/// The disk is slow, here a pipe that takes the content only when it is read: others go on.
#[test]
#[cfg(unix)]
fn marks_do_not_wait_for_a_bundle_that_is_being_written() {
    use std::io::Read;
    use std::time::Duration;
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    store.put_bundle(PEER, &MODEL, &id(1), b"ready").unwrap();
    // The writer's temporary file, under the name of the ready bundle with another id.
    let ready = std::fs::read_dir(state.path().join("bundles")).unwrap();
    let ready = ready.map(|file| file.unwrap().path()).next().unwrap();
    let name = ready.file_name().unwrap().to_str().unwrap();
    let pipe = ready.with_file_name(name.replace(&"01".repeat(32), &"02".repeat(32)) + ".new");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    // More than a pipe holds, so that the writer is still writing after the pipe is open.
    let slow = vec![7; 1 << 20];
    let (marked, mark) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| store.put_bundle(PEER, &MODEL, &id(2), &slow));
        let mut reader = std::fs::File::open(&pipe).unwrap();
        reader.read_exact(&mut [0]).unwrap();
        let (store, slow) = (&store, &slow);
        scope.spawn(move || marked.send(store.spend(PEER, &id(1))));
        let waited = mark.recv_timeout(Duration::from_secs(20));
        // A name that is being written is taken. (If the mark waits, so would this.)
        let second = waited
            .is_ok()
            .then(|| store.put_bundle(PEER, &MODEL, &id(2), b"other"));
        std::io::copy(&mut reader, &mut std::io::sink()).unwrap();
        // A pipe cannot be made durable, which is the error of a disk.
        let error = writer.join().unwrap().unwrap_err();
        assert!(matches!(error, StoreError::File { .. }), "{error}");
        waited.expect("the mark waits for the writer").unwrap();
        assert!(
            matches!(second, Some(Err(StoreError::Exists(_)))),
            "{second:?}"
        );
        // After the error the name is free again, and nothing of the content is left.
        store.put_bundle(PEER, &MODEL, &id(2), slow).unwrap();
    });
    assert_eq!(store.ready(PEER, &MODEL).unwrap(), [id(2)]);
}

/// A half is no bundle before it is kept, and nothing of one that is not kept stays.
#[test]
fn a_half_that_is_written_bit_by_bit_is_kept_in_full_or_not_at_all() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    let mut writer = store.bundle_writer(PEER, &id(1)).unwrap();
    writer.append(b"first ").unwrap();
    assert_eq!(contents(state.path()), 1);
    assert!(store.bundles().unwrap().is_empty());
    let second = store.bundle_writer(PEER, &id(1));
    assert!(matches!(second.err(), Some(StoreError::Exists(_))));
    drop(writer);
    assert_eq!(contents(state.path()), 0);

    let mut writer = store.bundle_writer(PEER, &id(1)).unwrap();
    for part in [&b"sec"[..], b"", b"ond"] {
        BundleSink::write(&mut writer, part).unwrap();
    }
    assert!(writer.take_failure().is_none());
    writer.keep(&MODEL).unwrap();
    assert_eq!(store.ready(PEER, &MODEL).unwrap(), [id(1)]);
    assert_eq!(take(&store, PEER, &id(1)).unwrap().as_slice(), b"second");
    let again = store.bundle_writer(PEER, &id(1));
    assert!(matches!(again.err(), Some(StoreError::Exists(_))));

    // What a process that was killed left behind.
    let mut writer = store.bundle_writer(PEER, &id(2)).unwrap();
    writer.append(b"secret").unwrap();
    let left = std::fs::read_dir(state.path().join("bundles")).unwrap();
    let left = left.map(|file| file.unwrap().path());
    let left = left.filter(|path| path.extension().is_some_and(|e| e == "new"));
    let copy = state.path().join("bundles").join("killed.new");
    std::fs::copy(left.last().unwrap(), &copy).unwrap();
    drop(writer);
    drop(store);
    drop(Store::open(state.path()).unwrap());
    assert_eq!(contents(state.path()), 0);
}

#[test]
fn a_content_is_read_from_its_beginning_to_its_end() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    store.put_bundle(PEER, &MODEL, &id(1), b"content").unwrap();
    let open = || store.content(PEER, &id(1)).unwrap().open();
    let mut source = open().unwrap();
    assert_eq!(source.read(3).unwrap(), b"con");
    assert_eq!(source.read(0).unwrap(), b"");
    assert!(source.end().is_err(), "four bytes are left");
    assert_eq!(source.read(4).unwrap(), b"tent");
    source.end().unwrap();
    assert!(source.read(1).is_err());
    // No more is reserved than there is.
    assert!(open().unwrap().read(usize::MAX).is_err());
    // A length that changed is found at once, a file that shrinks later where it ends.
    let mut begun = open().unwrap();
    let mut files = std::fs::read_dir(state.path().join("bundles")).unwrap();
    let path = files.next().unwrap().unwrap().path();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(5).unwrap();
    assert!(matches!(open().err(), Some(StoreError::Damaged { .. })));
    assert_eq!(begun.read(4).unwrap(), b"cont");
    assert!(begun.read(3).is_err());
}

#[test]
fn content_that_changed_on_disk_is_refused_and_the_bundle_spent() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    store.put_bundle(PEER, &MODEL, &id(1), b"content").unwrap();
    let mut files = std::fs::read_dir(state.path().join("bundles")).unwrap();
    std::fs::write(files.next().unwrap().unwrap().path(), b"c0ntent").unwrap();
    assert!(matches!(
        take(&store, PEER, &id(1)),
        Err(StoreError::Damaged { .. })
    ));
    assert!(matches!(
        take(&store, PEER, &id(1)),
        Err(StoreError::Spent(_))
    ));
}

#[test]
fn reading_ahead_spends_nothing_and_spending_ends_it() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    store.put_bundle(PEER, &MODEL, &id(1), b"content").unwrap();
    for _ in 0..2 {
        let reading = store.content(PEER, &id(1)).unwrap();
        assert_eq!(reading.length(), 7);
        assert_eq!(reading.run().unwrap().as_slice(), b"content");
    }
    assert_eq!(store.ready(PEER, &MODEL).unwrap(), [id(1)]);
    let begun = store.content(PEER, &id(1)).unwrap();
    store.spend(PEER, &id(1)).unwrap();
    // Who began before the mark may end after it: the mark is one thing, reading another.
    assert_eq!(begun.run().unwrap().as_slice(), b"content");
    assert!(matches!(
        store.content(PEER, &id(1)),
        Err(StoreError::Spent(_))
    ));
    assert!(matches!(
        store.spend(PEER, &id(1)),
        Err(StoreError::Spent(_))
    ));
    assert!(matches!(
        store.content(PEER, &id(2)),
        Err(StoreError::Unknown(_))
    ));
    store.erasure(PEER, &id(1)).unwrap().run().unwrap();
    store.erasure(PEER, &id(1)).unwrap().run().unwrap();
    assert_eq!(contents(state.path()), 0);
}

/// Of any number of threads, before and after a restart, as many get an answer as the limit says;
/// the others leave their bundles as they are.
#[test]
fn answers_are_counted_for_good_and_never_beyond_the_limit() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    for n in 0..24 {
        store.put_bundle(PEER, &MODEL, &id(n), b"x").unwrap();
    }
    store.put_bundle(OTHER, &MODEL, &id(0), b"x").unwrap();
    let spend = |store: &Store, ids: std::ops::Range<u8>, limit| {
        let store = &store;
        std::thread::scope(|scope| {
            let threads =
                ids.map(|n| scope.spawn(move || store.spend_on_answer(PEER, &id(n), Some(limit))));
            let threads: Vec<_> = threads.collect();
            let results = threads.into_iter().map(|thread| thread.join().unwrap());
            let (given, refused): (Vec<_>, Vec<_>) = results.partition(Result::is_ok);
            let limited = |r: &Result<_, _>| matches!(r, Err(StoreError::AnswersUsed(_)));
            assert!(refused.iter().all(limited), "{refused:?}");
            given.len()
        })
    };
    assert_eq!(spend(&store, 0..8, 5), 5);
    assert_eq!(store.answers(PEER).unwrap(), 5);
    drop(store);
    let store = Store::open(state.path()).unwrap();
    assert_eq!(spend(&store, 8..16, 5), 0);
    assert_eq!(spend(&store, 16..24, 7), 2);
    assert_eq!(store.answers(PEER).unwrap(), 7);
    assert_eq!(store.ready(PEER, &MODEL).unwrap().len(), 24 - 7);
    // A bundle that is spent already counts no second answer; another peer has its own count.
    store.spend_on_answer(OTHER, &id(0), None).unwrap();
    assert!(matches!(
        store.spend_on_answer(OTHER, &id(0), None),
        Err(StoreError::Spent(_))
    ));
    assert_eq!(store.answers(OTHER).unwrap(), 1);
}

#[test]
fn setups_artifacts_and_peers_are_kept() {
    let state = tempfile::tempdir().unwrap();
    let record = PeerRecord {
        addresses: vec!["localhost:4433".into()],
        model: MODEL,
        prepared_at: 5,
    };
    let store = Store::open(state.path()).unwrap();
    assert!(store.setup(PEER).unwrap().is_none());
    store.put_setup(PEER, &[6; 32], b"old").unwrap();
    store.put_setup(PEER, &[7; 32], &vec![9; 5 << 20]).unwrap();
    store.put_artifact(&MODEL, b"artifact").unwrap();
    store.put_peer(PEER, &record).unwrap();
    drop(store);
    let store = Store::open(state.path()).unwrap();
    assert_eq!(store.setup(PEER).unwrap().unwrap().len(), 5 << 20);
    assert_eq!(store.setup_id(PEER).unwrap(), Some([7; 32]));
    assert_eq!(store.setup_id(OTHER).unwrap(), None);
    // One that an older version made is there and is none.
    store.put_setup(OTHER, &[8; 32], &[0, 1, 2]).unwrap();
    assert_eq!(store.setup_id(OTHER).unwrap(), None);
    assert_eq!(store.artifact(&MODEL).unwrap().unwrap(), b"artifact");
    assert_eq!(store.peers().unwrap(), [(PEER, record)]);
    for left in [None, Some(3), None] {
        store.put_answers_left(PEER, left).unwrap();
        assert_eq!(store.answers_left(PEER).unwrap(), left);
    }
}

/// An earlier setup is nowhere in the state directory, even after a crash before its erasure.
#[test]
fn a_setup_that_was_replaced_is_erased() {
    let state = tempfile::tempdir().unwrap();
    let found = |secret: &[u8]| {
        let directories = ["", "setups", "bundles"].map(|name| state.path().join(name));
        let files = directories
            .iter()
            .flat_map(|d| std::fs::read_dir(d).unwrap());
        let files = files
            .map(|file| file.unwrap().path())
            .filter(|file| file.is_file());
        files
            .filter(|file| {
                let bytes = std::fs::read(file).unwrap();
                bytes.windows(secret.len()).any(|window| window == secret)
            })
            .count()
    };
    let store = Store::open(state.path()).unwrap();
    let (old, new) = (
        b"the secret of the old setup",
        b"the secret of the new setup",
    );
    store.put_setup(PEER, &[6; 32], old).unwrap();
    assert_eq!(found(old), 1);
    store.put_setup(PEER, &[7; 32], new).unwrap();
    store.put_setup(PEER, &[7; 32], new).unwrap();
    assert_eq!((found(old), found(new)), (0, 1));
    std::fs::write(state.path().join("setups/left-behind"), old).unwrap();
    drop(store);
    let store = Store::open(state.path()).unwrap();
    assert_eq!((found(old), found(new)), (0, 1));
    assert_eq!(store.setup(PEER).unwrap().unwrap().as_slice(), new);
}

#[test]
#[cfg(unix)]
fn everything_in_a_store_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let state = parent.path().join("state");
    let store = Store::open(&state).unwrap();
    store.put_bundle(PEER, &MODEL, &id(1), b"x").unwrap();
    store.put_setup(PEER, &[6; 32], b"x").unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("store.redb")), 0o600);
    for directory in ["bundles", "setups"] {
        assert_eq!(mode(&state.join(directory)), 0o700);
        let file = std::fs::read_dir(state.join(directory)).unwrap().next();
        assert_eq!(mode(&file.unwrap().unwrap().path()), 0o600);
    }
}
