//! Folders of images that stand for classes, one each, as torchvision's `ImageFolder` has them.

use super::Reads;
use super::files::is_image;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// A folder with the images of one class.
pub(super) struct Folder {
    pub(super) name: String,
    pub(super) files: Vec<PathBuf>,
}

/// The folders in a path that have images, by name; those without any are left out.
pub(super) fn list(path: &Path) -> Result<Vec<Folder>> {
    let sorted = |path: &Path| -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(path);
        let entries = entries.with_context(|| format!("cannot read {}", path.display()))?;
        let paths = entries.map(|entry| Ok(entry?.path()));
        let mut paths = paths.collect::<Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    };
    let mut folders = Vec::new();
    for path in sorted(path)?.into_iter().filter(|path| path.is_dir()) {
        let files = sorted(&path)?.into_iter();
        let files: Vec<_> = files.filter(|f| f.is_file() && is_image(f)).collect();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !files.is_empty() {
            folders.push(Folder {
                name: name.into_owned(),
                files,
            });
        }
    }
    Ok(folders)
}

/// The class of each folder, if it can be told, and in words how.
///
/// The network's names of its classes come first, then numbers, then the order of the names by
/// byte, which is `ImageFolder`'s. That order would be wrong for folders that are only some of the
/// classes, which then have none.
///
/// # Errors
/// If some folders have names of classes and others have not.
pub(super) fn classes(names: &[&str], reads: &Reads<'_>) -> Result<(Vec<Option<u32>>, String)> {
    let known = |name: &&str| reads.classes.iter().position(|class| class == name);
    let unknown: Vec<&str> = names
        .iter()
        .filter(|n| known(n).is_none())
        .copied()
        .collect();
    if unknown.is_empty() {
        let classes = names
            .iter()
            .map(|name| known(name).map(|class| class as u32));
        let words = "labels: folders are named as the network's classes, whose order counts";
        return Ok((classes.collect(), words.into()));
    }
    ensure!(
        unknown.len() == names.len(),
        "folders stand for classes, but of {} folders {} no classes of the network: {}; its \
         classes are {}",
        names.len(),
        if unknown.len() == 1 {
            "one is"
        } else {
            "some are"
        },
        unknown.join(", "),
        reads.classes.join(", ")
    );
    let numbers: Option<Vec<u32>> = names.iter().map(|name| name.parse().ok()).collect();
    if let Some(numbers) = numbers {
        let mut words = "labels: folders are named by numbers, which are the classes".to_owned();
        if !numbers.is_sorted() {
            words.push_str(
                "; ImageFolder of torchvision counts them in the order of their names (0, 1, 10, \
                 2): if the network was trained with it, rename the folders",
            );
        }
        return Ok((numbers.into_iter().map(Some).collect(), words));
    }
    if names.len() != reads.outputs {
        let words = format!(
            "no labels: {} folders have other names than the network's {} classes, so their order \
             says nothing; name them as the classes, or by number",
            names.len(),
            reads.outputs
        );
        return Ok((vec![None; names.len()], words));
    }
    let last = names.len() - 1;
    let words = format!(
        "labels: folders in the order of their names, as ImageFolder of torchvision counts them: 0 \
         is {}, {last} is {}",
        names[0], names[last]
    );
    let count = names.len() as u32;
    Ok(((0..count).map(Some).collect(), words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pi_ir::{Preprocessing, Shape};

    fn of(names: &[&str], known: &[&str], outputs: usize) -> Result<(Vec<Option<u32>>, String)> {
        let known: Vec<String> = known.iter().map(|&name| name.into()).collect();
        let reads = Reads {
            shape: Shape::new(3, 4, 4),
            preprocessing: &Preprocessing::unit(3),
            classes: &known,
            outputs,
        };
        classes(names, &reads)
    }

    /// The classic mistake: the network counts cats first, the alphabet counts birds first.
    #[test]
    fn names_of_classes_come_before_the_alphabet() {
        let (classes, words) =
            of(&["bird", "cat", "dog"], &["cat", "bird", "dog", "emu"], 4).unwrap();
        assert_eq!(classes, [Some(1), Some(0), Some(2)]);
        assert!(words.contains("the network's classes"), "{words}");
        let error = of(&["bird", "cat", "fish"], &["cat", "bird"], 2)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("one is no classes of the network: fish"),
            "{error}"
        );
    }

    #[test]
    fn without_names_numbers_count_and_then_the_alphabet() {
        let (classes, words) = of(&["0", "1", "10", "2"], &[], 11).unwrap();
        assert_eq!(classes, [Some(0), Some(1), Some(10), Some(2)]);
        assert!(
            words.contains("if the network was trained with it"),
            "{words}"
        );
        let (_, words) = of(&["0", "1"], &["cat", "dog"], 2).unwrap();
        assert!(!words.contains("ImageFolder"), "{words}");
        let (classes, words) = of(&["ant", "bee", "cat"], &[], 3).unwrap();
        assert_eq!(classes, [Some(0), Some(1), Some(2)]);
        assert!(words.contains("0 is ant, 2 is cat"), "{words}");
        // Three of a thousand: the alphabet does not say which.
        let (classes, words) = of(&["ant", "bee", "cat"], &[], 1000).unwrap();
        assert_eq!(classes, [None; 3]);
        assert!(words.contains("no labels: 3 folders"), "{words}");
    }
}
