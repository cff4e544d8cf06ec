//! The store that several servers share keeps what every store promises, and for any number of
//! servers; its contents are readable with the operator's key alone.

#[path = "store/postgres.rs"]
mod postgres;
#[path = "store/suite.rs"]
#[macro_use]
mod suite;

use pi_protocol::session::BundleId;
use pi_runtime::store::shared::{SharedOptions, SharedStore};
use pi_runtime::store::{AnswerLimits, ServerStore, StoreError};
use postgres::Postgres;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use suite::{CLIENT, MODEL, OTHER, Place, id, put, spend, take};

/// A database with a folder of objects and a key.
struct Shared {
    postgres: Arc<Postgres>,
    database: String,
    folder: tempfile::TempDir,
}

impl Place for Shared {
    fn new() -> Option<Shared> {
        Some(Shared::on(Postgres::common()?))
    }

    fn open(&self) -> Box<dyn ServerStore> {
        Box::new(self.store())
    }

    fn contents(&self) -> usize {
        self.objects("bundles").len()
    }
}

impl Shared {
    fn on(postgres: Arc<Postgres>) -> Shared {
        let shared = Shared {
            database: postgres.database(),
            postgres,
            folder: tempfile::tempdir().unwrap(),
        };
        shared.set_keys(&["a"]);
        shared
    }

    /// Writes the key file: each key is one digit again and again.
    fn set_keys(&self, digits: &[&str]) {
        let keys: Vec<String> = digits.iter().map(|digit| digit.repeat(64)).collect();
        std::fs::write(self.key(), keys.join("\n")).unwrap();
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(self.key(), private).unwrap();
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key")
    }

    fn options(&self) -> SharedOptions {
        SharedOptions {
            database: self.database.clone(),
            authorities: None,
            objects: self.folder.path().join("objects").display().to_string(),
            key: self.key(),
            grace: Duration::ZERO,
        }
    }

    fn store(&self) -> SharedStore {
        SharedStore::open(&self.options()).unwrap()
    }

    /// Files of the contents of a kind.
    fn objects(&self, kind: &str) -> Vec<PathBuf> {
        let folder = self.folder.path().join("objects").join(kind);
        let files = std::fs::read_dir(folder).into_iter().flatten();
        files.map(|file| file.unwrap().path()).collect()
    }

    /// The one file of a bundle.
    fn object(&self, bundle: &BundleId) -> PathBuf {
        let hex = format!("{:02x}", bundle.0[0]).repeat(32);
        let sql = format!("SELECT object FROM bundles WHERE id = '\\x{hex}'");
        self.folder.path().join("objects").join(self.query(&sql))
    }

    fn query(&self, sql: &str) -> String {
        self.postgres.query(&self.database, sql).unwrap()
    }
}

suite!(Shared);

/// Ids of many bundles.
fn bundle(n: usize) -> BundleId {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&(n as u64 + 1).to_be_bytes());
    BundleId(id)
}

/// Keeps so many bundles, half of them through each store.
fn put_many(stores: &[SharedStore; 2], count: usize) {
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for n in (thread..count).step_by(8) {
                    put(&stores[n % 2], CLIENT, &bundle(n), b"content").unwrap();
                }
            });
        }
    });
}

#[test]
fn of_two_servers_with_many_threads_each_bundle_is_spent_by_one() {
    const BUNDLES: usize = 200;
    let Some(place) = Shared::new() else { return };
    let stores = [place.store(), place.store()];
    // Prepared with one, spent with any.
    put_many(&stores, BUNDLES);
    let won: Vec<AtomicUsize> = (0..BUNDLES).map(|_| AtomicUsize::new(0)).collect();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (store, won) = (&stores[thread % 2], &won);
            scope.spawn(move || {
                for step in 0..BUNDLES {
                    let n = (step * 7 + thread * 3) % BUNDLES;
                    match spend(store, CLIENT, &bundle(n)) {
                        Ok(()) => drop(won[n].fetch_add(1, Ordering::SeqCst)),
                        Err(StoreError::Spent(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    assert!(won.iter().all(|won| won.load(Ordering::SeqCst) == 1));
    let journal = place.query(
        "SELECT what, count(*), count(DISTINCT bundle), count(DISTINCT server) FROM journal
         GROUP BY what ORDER BY what",
    );
    assert_eq!(journal, "keep|200|200|2\nspend|200|200|2");
    let usage = stores[0].usage(CLIENT, "model", 20_000).unwrap();
    assert_eq!(usage.answers, BUNDLES as u64);
}

/// Whatever a program does: not the row of the bundle alone keeps it from being spent again.
#[test]
fn the_database_itself_refuses_a_second_end_of_a_bundle() {
    let Some(place) = Shared::new() else { return };
    let store = place.store();
    put(&store, CLIENT, &id(1), b"content").unwrap();
    spend(&store, CLIENT, &id(1)).unwrap();
    place.query("UPDATE bundles SET state = 'ready'");
    let error = spend(&store, CLIENT, &id(1)).unwrap_err();
    assert!(matches!(error, StoreError::Database { .. }), "{error}");
    let error = store.forget_client(CLIENT).unwrap_err();
    assert!(matches!(error, StoreError::Database { .. }), "{error}");
    assert_eq!(store.usage(CLIENT, "model", 0).unwrap().answers, 1);
}

#[test]
fn servers_that_start_at_once_make_the_tables_once() {
    let Some(place) = Shared::new() else { return };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| place.store())).collect();
        for thread in threads {
            thread.join().unwrap();
        }
    });
    assert_eq!(place.query("SELECT version FROM schema_version"), "1");
    place.query("UPDATE schema_version SET version = 2");
    let error = SharedStore::open(&place.options()).err().unwrap();
    assert!(error.to_string().contains("version 2"), "{error}");
}

/// The database crashes while bundles are spent: calls fail with its name, then go on; what was
/// acknowledged stays, and nothing is spent twice.
#[test]
fn a_database_that_was_gone_is_used_again_and_forgot_nothing() {
    const BUNDLES: usize = 100;
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let place = Shared::on(Arc::new(postgres));
    let stores = [place.store(), place.store()];
    put_many(&stores, BUNDLES);
    let (failures, spent) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let back = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (thread, store) in stores.iter().enumerate() {
            let (failures, spent, back) = (&failures, &spent, &back);
            scope.spawn(move || {
                let mine = (0..BUNDLES).filter(|n| n % 2 == thread);
                let mut last = 0;
                for n in mine {
                    match spend(store, CLIENT, &bundle(n)) {
                        Ok(()) => drop(spent.fetch_add(1, Ordering::SeqCst)),
                        Err(StoreError::Database { .. }) => {
                            failures.fetch_add(1, Ordering::SeqCst);
                            std::thread::sleep(Duration::from_millis(50));
                        }
                        Err(error) => panic!("{error}"),
                    }
                    last = n;
                    // Some are left for the time after the crash.
                    if n > BUNDLES / 2 && !back.load(Ordering::SeqCst) {
                        break;
                    }
                }
                assert!(last > 0);
            });
        }
        while spent.load(Ordering::SeqCst) < 10 {
            std::thread::yield_now();
        }
        place.postgres.crash();
        while failures.load(Ordering::SeqCst) < 2 {
            std::thread::yield_now();
        }
        place.postgres.run();
        back.store(true, Ordering::SeqCst);
    });
    for store in &stores {
        let left = store.ready(CLIENT, &MODEL).unwrap();
        let next = left.first().expect("more than half were left");
        spend(store, CLIENT, next).unwrap();
        spent.fetch_add(1, Ordering::SeqCst);
        assert!(spend(store, CLIENT, next).is_err());
    }
    let acknowledged = spent.into_inner();
    let journal =
        place.query("SELECT count(*), count(DISTINCT bundle) FROM journal WHERE what = 'spend'");
    let counts: Vec<usize> = journal.split('|').map(|n| n.parse().unwrap()).collect();
    assert_eq!(counts[0], counts[1]);
    // A commit whose answer was lost is the one way to more: at most one for each server's failure.
    let unanswered = counts[0] - acknowledged;
    assert!(unanswered <= failures.into_inner(), "{unanswered}");
    let answers = stores[0].usage(CLIENT, "model", 0).unwrap().answers;
    assert_eq!(answers, counts[0] as u64);
}

#[test]
fn a_database_that_is_not_there_is_an_error_that_names_it_without_its_password() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "a".repeat(64)).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    for (database, expected) in [
        ("postgresql://pi:geheim@127.0.0.1:1/store", "store"),
        // Beyond this machine only with TLS.
        (
            "postgresql://pi:geheim@192.0.2.1/store",
            "--store-database-ca",
        ),
        ("postgresql://pi:geheim@192.0.2.1:geheim", "URL"),
    ] {
        let error = SharedStore::open(&SharedOptions {
            database: database.into(),
            authorities: None,
            objects: folder.path().join("objects").display().to_string(),
            key: key.clone(),
            grace: SharedOptions::GRACE,
        });
        let error = error.err().unwrap();
        assert!(matches!(error, StoreError::Database { .. }), "{error}");
        let text = format!("{error} {error:?}");
        assert!(
            text.contains(expected) && !text.contains("geheim"),
            "{text}"
        );
    }
}

/// With the authority of its certificate, and with no other.
#[test]
fn the_line_to_a_database_elsewhere_is_encrypted_and_authenticated() {
    let folder = tempfile::tempdir().unwrap();
    let certified = |name: &str| {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, made.cert.pem()).unwrap();
        (path, made.signing_key.serialize_pem())
    };
    let (authority, key) = certified("authority");
    let (stranger, _) = certified("stranger");
    let certificate = std::fs::read_to_string(&authority).unwrap();
    let Some((postgres, port)) = Postgres::with_tls(&certificate, &key) else {
        return;
    };
    let place = Shared::on(Arc::new(postgres));
    let name = place.database.rsplit(' ').next().unwrap();
    let open = |authorities: &Path, mode: &str| {
        SharedStore::open(&SharedOptions {
            database: format!("host=localhost port={port} user=pi {name} sslmode={mode}"),
            authorities: Some(authorities.into()),
            ..place.options()
        })
    };
    let store = open(&authority, "require").unwrap();
    put(&store, CLIENT, &id(1), b"x").unwrap();
    let encrypted = "SELECT count(*) > 0, bool_and(ssl) FROM pg_stat_ssl
                     JOIN pg_stat_activity USING (pid) WHERE application_name = 'pi-server'";
    assert_eq!(place.query(encrypted), "t|t");
    for (authorities, mode) in [(&stranger, "require"), (&authority, "prefer")] {
        let error = open(authorities, mode).err().unwrap();
        assert!(matches!(error, StoreError::Database { .. }), "{error}");
    }
}

/// Three chunks of a content, the last one short.
fn long_content() -> Vec<u8> {
    (0..150_000_u32).map(|n| (n % 251) as u8).collect()
}

/// Reads a bundle in both ways, and ensures that both refuse.
fn assert_refused(store: &dyn ServerStore, id: &BundleId) {
    let run = store.content(CLIENT, id).unwrap().run().map(drop);
    let open = store
        .content(CLIENT, id)
        .unwrap()
        .open()
        .and_then(|mut source| {
            source
                .read(long_content().len())
                .map(drop)
                .map_err(|_| damaged())
        });
    for refused in [run, open] {
        let error = refused.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    }
}

fn damaged() -> StoreError {
    StoreError::Damaged {
        path: "".into(),
        reason: "while it was read".into(),
    }
}

#[test]
fn contents_that_changed_are_refused() {
    let Some(place) = Shared::new() else { return };
    let store = place.store();
    let content = long_content();
    for n in 1..=2 {
        put(&store, CLIENT, &id(n), &content).unwrap();
    }
    let (path, other) = (place.object(&id(1)), place.object(&id(2)));
    let sound = std::fs::read(&path).unwrap();
    let (header, chunk) = (41, 65_536 + 16);
    let flip = |byte: usize| {
        let mut bytes = sound.clone();
        bytes[byte] ^= 1;
        bytes
    };
    let mut reordered = sound.clone();
    reordered[header..][..2 * chunk].rotate_left(chunk);
    let without_second = [&sound[..header + chunk], &sound[header + 2 * chunk..]].concat();
    let ends = [0, 8, 9, header - 1, header, header + chunk, sound.len() - 1];
    let mut changed: Vec<Vec<u8>> = ends.map(flip).into();
    changed.extend([
        reordered,
        without_second,
        // Cut within a chunk, at the end of one, within the header, to nothing.
        sound[..sound.len() - 1].to_vec(),
        sound[..header + 2 * chunk].to_vec(),
        sound[..header - 1].to_vec(),
        Vec::new(),
        // That of another bundle.
        std::fs::read(&other).unwrap(),
    ]);
    for bytes in changed {
        std::fs::write(&path, bytes).unwrap();
        assert_refused(&store, &id(1));
    }
    std::fs::remove_file(&path).unwrap();
    assert_refused(&store, &id(1));
    // As it was, but with another key, for another model, or for another client.
    std::fs::write(&path, &sound).unwrap();
    let read = |store: &SharedStore| store.content(CLIENT, &id(1)).unwrap().run();
    assert_eq!(read(&store).unwrap().as_slice(), content);
    place.set_keys(&["b"]);
    assert_refused(&place.store(), &id(1));
    place.set_keys(&["a"]);
    place.query("UPDATE bundles SET model = decode(repeat('08', 32), 'hex')");
    assert_refused(&store, &id(1));
    let refused = store.content(CLIENT, &id(1)).unwrap().open();
    assert!(
        refused.is_err(),
        "nothing of it is given out for another model"
    );
    place.query("UPDATE bundles SET model = decode(repeat('07', 32), 'hex')");
    place.query("UPDATE bundles SET length = length - 65536");
    assert_refused(&store, &id(1));
    place.query("UPDATE bundles SET length = length + 65536");
    assert_eq!(read(&store).unwrap().as_slice(), content);
    place.query("UPDATE bundles SET client = decode(repeat('02', 32), 'hex') WHERE id < '\\x02'");
    let moved = store.content(OTHER, &id(1)).unwrap().run();
    assert!(matches!(moved, Err(StoreError::Damaged { .. })));
}

#[test]
fn a_setup_is_refused_as_another_clients_or_in_an_older_form() {
    let Some(place) = Shared::new() else { return };
    let store = place.store();
    store.put_setup(CLIENT, &[6; 32], b"first").unwrap();
    let first = std::fs::read(&place.objects("setups")[0]).unwrap();
    store.put_setup(CLIENT, &[6; 32], b"again").unwrap();
    assert_eq!(place.objects("setups").len(), 1);
    let path = &place.objects("setups")[0];
    let again = std::fs::read(path).unwrap();
    std::fs::write(path, first).unwrap();
    let refused = store.setup(CLIENT);
    assert!(matches!(refused, Err(StoreError::Damaged { .. })));
    std::fs::write(path, again).unwrap();
    assert_eq!(store.setup(CLIENT).unwrap().unwrap().as_slice(), b"again");
    place.query("UPDATE setups SET client = decode(repeat('02', 32), 'hex')");
    let refused = store.setup(OTHER);
    assert!(matches!(refused, Err(StoreError::Damaged { .. })));
}

#[test]
fn nothing_of_a_content_is_readable_in_the_object_store() {
    let Some(place) = Shared::new() else { return };
    let store = place.store();
    let secret = b"this is the secret of a bundle or of a setup";
    let long = secret.repeat(300_000);
    put(&store, CLIENT, &id(1), secret).unwrap();
    put(&store, CLIENT, &id(2), &long).unwrap();
    store.put_setup(CLIENT, &[6; 32], secret).unwrap();
    let mut files = place.objects("bundles");
    files.extend(place.objects("setups"));
    assert_eq!(files.len(), 3);
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let found = bytes
            .windows(8)
            .any(|window| window == &secret[..8] || window == &secret[8..16]);
        assert!(!found, "{}", file.display());
    }
    // What is equal looks different.
    let [first, second] = [3, 4].map(|n| {
        put(&store, CLIENT, &id(n), secret).unwrap();
        std::fs::read(place.object(&id(n))).unwrap()
    });
    assert_eq!(first.len(), second.len());
    assert_ne!(first[41..], second[41..]);
}

#[test]
fn keys_are_rotated_by_a_new_first_line() {
    let Some(place) = Shared::new() else { return };
    put(&place.store(), CLIENT, &id(1), b"old").unwrap();
    place.set_keys(&["b", "a"]);
    let store = place.store();
    put(&store, CLIENT, &id(2), b"new").unwrap();
    let read = |store: &SharedStore, n| {
        let content = store.content(CLIENT, &id(n)).unwrap();
        content.run().map(|content| content.to_vec())
    };
    assert_eq!(read(&store, 1).unwrap(), b"old");
    assert_eq!(read(&store, 2).unwrap(), b"new");
    place.set_keys(&["b"]);
    let store = place.store();
    assert_eq!(read(&store, 2).unwrap(), b"new");
    let error = read(&store, 1).unwrap_err();
    assert!(error.to_string().contains("key file"), "{error}");
}

/// What a server left that was killed: no other deletes what is being written, and all of it goes
/// when its lease is over.
#[test]
fn leftovers_are_swept_and_what_is_being_written_is_not() {
    let Some(place) = Shared::new() else { return };
    let (first, second) = (place.store(), place.store());
    let long = vec![5; 20 << 20];
    let mut writer = first.bundle_writer(CLIENT, &id(1)).unwrap();
    writer.append(&long).unwrap();
    let mut slow = first.bundle_writer(CLIENT, &id(2)).unwrap();
    slow.append(b"slow").unwrap();
    let begun = place.contents();
    assert!(begun > 0, "parts of a long content are sent early");
    second.sweep().unwrap();
    drop(place.store());
    assert_eq!(place.contents(), begun);
    writer.append(b"more").unwrap();
    writer.keep(&MODEL).unwrap();
    let kept = second.content(CLIENT, &id(1)).unwrap().run().unwrap();
    assert_eq!(kept.len(), long.len() + 4);

    let mut killed = first.bundle_writer(CLIENT, &id(3)).unwrap();
    killed.append(&long).unwrap();
    // Without its clean-up, as after `kill -9`.
    std::mem::forget(killed);
    std::fs::write(place.folder.path().join("objects/bundles/stray"), b"x").unwrap();
    place.query("UPDATE writes SET lease = clock_timestamp() - interval '1 second'");
    second.sweep().unwrap();
    assert_eq!(place.objects("bundles"), [place.object(&id(1))]);
    let late = slow.keep(&MODEL).unwrap_err();
    assert!(matches!(late, StoreError::Objects { .. }), "{late}");
    assert!(second.bundle(CLIENT, &id(2)).unwrap().is_none());
    // Both names are free again.
    put(&second, CLIENT, &id(2), b"x").unwrap();
    put(&second, CLIENT, &id(3), b"x").unwrap();
    let content = take(&second, CLIENT, &id(1)).unwrap();
    assert_eq!(content.len(), long.len() + 4);
}

/// A bundle that is spent is read on by who spent it, whoever sweeps meanwhile.
#[test]
fn a_spent_bundle_is_left_for_a_while_to_who_reads_it() {
    let Some(place) = Shared::new() else { return };
    let patient = SharedStore::open(&SharedOptions {
        grace: SharedOptions::GRACE,
        ..place.options()
    });
    let (store, patient) = (place.store(), patient.unwrap());
    put(&store, CLIENT, &id(1), b"content").unwrap();
    let content = store.content(CLIENT, &id(1)).unwrap();
    spend(&store, CLIENT, &id(1)).unwrap();
    patient.sweep().unwrap();
    assert_eq!(content.run().unwrap().as_slice(), b"content");
    place.query("UPDATE bundles SET spent_at = spent_at - interval '11 minutes'");
    patient.sweep().unwrap();
    assert_eq!(place.contents(), 0);
}

/// The limits hold over all servers together.
#[test]
fn answers_are_counted_over_all_servers() {
    let Some(place) = Shared::new() else { return };
    let stores = [place.store(), place.store()];
    for n in 0..40 {
        put(&stores[0], CLIENT, &bundle(n), b"x").unwrap();
    }
    let limits = AnswerLimits {
        ever: None,
        per_day: Some(7),
    };
    let given = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for n in 0..40 {
            let (store, given) = (&stores[n % 2], &given);
            scope.spawn(
                move || match store.spend_on_answer(CLIENT, &bundle(n), "m", &limits, 3) {
                    Ok(()) => drop(given.fetch_add(1, Ordering::SeqCst)),
                    Err(StoreError::AnswersUsedToday(7)) => {}
                    Err(error) => panic!("{error}"),
                },
            );
        }
    });
    assert_eq!(given.into_inner(), 7);
    assert_eq!(stores[0].ready(CLIENT, &MODEL).unwrap().len(), 33);
}

/// It is used where waiting for a runtime is forbidden, too.
#[tokio::test]
async fn a_store_may_be_opened_used_and_closed_inside_a_runtime() {
    let Some(place) = Shared::new() else { return };
    let store = place.store();
    put(&store, CLIENT, &id(1), b"x").unwrap();
    assert!(Path::new(&place.object(&id(1))).exists());
    drop(store);
}
