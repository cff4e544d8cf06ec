//! A bundle is used once, whatever happens; a store belongs to one process at a time.

#[path = "store/suite.rs"]
#[macro_use]
mod suite;

use pi_protocol::session::BundleSource;
use pi_runtime::store::{AnswerLimits, PeerRecord, ServerStore, Store, StoreError};
use redb::TableDefinition;
use std::path::Path;
use suite::{CLIENT as PEER, MODEL, OTHER, Place, id, take};

/// A state directory with an embedded store.
struct Embedded(tempfile::TempDir);

impl Place for Embedded {
    fn new() -> Option<Embedded> {
        Some(Embedded(tempfile::tempdir().unwrap()))
    }

    fn open(&self) -> Box<dyn ServerStore> {
        Box::new(Store::open(self.0.path()).unwrap())
    }

    fn contents(&self) -> usize {
        contents(self.0.path())
    }
}

suite!(Embedded);

fn contents(state: &Path) -> usize {
    std::fs::read_dir(state.join("bundles")).unwrap().count()
}

/// Its client had four answers: so many count as those of each account.
#[test]
fn a_store_of_the_format_before_is_brought_up_to_this_one() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    store.put_bundle(PEER, &MODEL, &id(1), b"content").unwrap();
    drop(store);
    change_format(state.path(), 3, |transaction| {
        let accounts = TableDefinition::<(&[u8; 32], &str), &[u8]>::new("accounts");
        let service = TableDefinition::<&str, &[u8; 32]>::new("service");
        assert!(transaction.delete_table(accounts).unwrap());
        assert!(transaction.delete_table(service).unwrap());
        let answers = TableDefinition::<&[u8; 32], u64>::new("answers");
        let mut answers = transaction.open_table(answers).unwrap();
        answers.insert(&PEER.0, 4).unwrap();
    });
    let store = Store::open(state.path()).unwrap();
    let spend = |ever| {
        let limits = AnswerLimits {
            ever: Some(ever),
            per_day: Some(1),
        };
        store.spend_on_answer(PEER, &id(1), "a", &limits, 9)
    };
    assert!(matches!(spend(4), Err(StoreError::AnswersUsed(4))));
    spend(5).unwrap();
    let answers = ["a", "b"].map(|account| {
        let used = store.usage(PEER, account, 9).unwrap();
        (used.answers, used.answers_today)
    });
    assert_eq!(answers, [(5, 1), (4, 0)]);
    assert_eq!(store.usage(OTHER, "a", 9).unwrap().answers, 0);
}

#[test]
fn a_store_of_another_format_is_refused() {
    for format in [2, 5] {
        let state = tempfile::tempdir().unwrap();
        drop(Store::open(state.path()).unwrap());
        change_format(state.path(), format, |_| {});
        let error = Store::open(state.path()).err().unwrap();
        assert!(
            matches!(error, StoreError::Format { found, .. } if found == format),
            "{error}"
        );
    }
}

fn change_format(state: &Path, format: u64, change: impl FnOnce(&redb::WriteTransaction)) {
    let database = redb::Database::create(state.join("store.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    change(&transaction);
    let meta = TableDefinition::<&str, u64>::new("meta");
    let mut meta = transaction.open_table(meta).unwrap();
    meta.insert("format", format).unwrap();
    drop(meta);
    transaction.commit().unwrap();
}

/// What a process that was killed left behind.
#[test]
fn a_half_that_was_never_kept_is_erased_on_opening() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    let mut writer = store.bundle_writer(PEER, &id(2)).unwrap();
    writer.append(b"secret").unwrap();
    assert_eq!(contents(state.path()), 1);
    let mut left = std::fs::read_dir(state.path().join("bundles")).unwrap();
    let left = left.next().unwrap().unwrap().path();
    let copy = state.path().join("bundles").join("killed.new");
    std::fs::copy(left, &copy).unwrap();
    drop(writer);
    assert_eq!(contents(state.path()), 1);
    drop(store);
    drop(Store::open(state.path()).unwrap());
    assert_eq!(contents(state.path()), 0);
}

#[test]
fn a_content_that_shrinks_is_found_where_it_ends() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    store.put_bundle(PEER, &MODEL, &id(1), b"content").unwrap();
    let open = || store.content(PEER, &id(1)).unwrap().open();
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
fn setups_artifacts_and_peers_are_kept() {
    let state = tempfile::tempdir().unwrap();
    let record = PeerRecord {
        addresses: vec!["localhost:4433".into()],
        model: MODEL,
        prepared_at: 5,
        certificates: vec![PEER],
        models: Vec::new(),
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
