//! The zip of an adapter: two files are taken out of it, and it may hold nothing that could be more than it seems.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use domain::adapter_file::{
    BadWeights, CONFIG_FILE, LENGTH_BYTES, MAX_CONFIG_BYTES, WEIGHTS_FILE, check_header,
    header_bytes,
};
use memchr::memmem;
use zip::ZipArchive;
use zip::result::ZipError;

/// The two files, a README and the folder they may lie in, with room for one more.
const MAX_ENTRIES: usize = 8;
/// Stands before every entry of a zip's directory. Source: APPNOTE 6.3.10, 4.3.12.
const ENTRY_MARK: &[u8] = b"PK\x01\x02";
/// Weights hold the mark by chance less than once in 4 GiB.
const MAX_MARKS: usize = MAX_ENTRIES + 56;
/// Bytes of a file looked at or copied at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// Taken for what it is, and not kept.
const README: &str = "README.md";

/// Why an archive is not taken.
#[derive(Debug, thiserror::Error)]
pub enum BadArchive {
    #[error("it cannot be read as a zip archive: {0}")]
    Zip(#[from] ZipError),
    #[error(
        "it has {0} entries; an adapter has {CONFIG_FILE}, {WEIGHTS_FILE} and perhaps {README}"
    )]
    TooMany(usize),
    #[error("its entry {0:?} is no plain file below one folder")]
    Path(String),
    #[error(
        "its entry {0:?} is not taken: only {CONFIG_FILE}, {WEIGHTS_FILE} and {README} are, nothing pickled and no code"
    )]
    Unwanted(String),
    #[error("its entry {0:?} is there twice")]
    Twice(String),
    #[error("it lacks {0}")]
    Missing(&'static str),
    #[error("{name} is larger than {max_bytes} bytes")]
    TooLarge { name: &'static str, max_bytes: u64 },
    #[error("{CONFIG_FILE} is not text in UTF-8")]
    Encoding,
    #[error("{WEIGHTS_FILE}: {0}")]
    Weights(#[from] BadWeights),
    /// This host cannot write or read its own files.
    #[error("a file of this host: {0}")]
    Host(io::Error),
}

/// Takes an adapter out of the archive `zip` into the file `weights`; its configuration comes back as text. Blocks.
/// Errors: whatever is not an adapter alone; `TooLarge` counts what is unpacked, not what the archive says of it.
pub fn unpack(zip: &Path, weights: &Path, max_bytes: u64) -> Result<String, BadArchive> {
    let file = File::open(zip).map_err(BadArchive::Host)?;
    let places = places(&file)?;
    let mut archive = ZipArchive::new(file)?;
    let config = archive.by_index(places.config)?;
    let mut text = Vec::new();
    copy(config, &mut text, CONFIG_FILE, MAX_CONFIG_BYTES)?;
    let text = String::from_utf8(text).map_err(|_| BadArchive::Encoding)?;
    let mut out = File::create_new(weights).map_err(BadArchive::Host)?;
    copy(
        archive.by_index(places.weights)?,
        &mut out,
        WEIGHTS_FILE,
        max_bytes,
    )?;
    check_weights(weights)?;
    Ok(text)
}

/// Which entries the two files are.
struct Places {
    config: usize,
    weights: usize,
}

fn places(file: &File) -> Result<Places, BadArchive> {
    // Opening an archive reads its whole directory: one of millions of entries is not opened to be told so.
    let n_marks = count_marks(file).map_err(BadArchive::Host)?;
    if n_marks > MAX_MARKS {
        return Err(BadArchive::TooMany(n_marks));
    }
    let mut archive = ZipArchive::new(file)?;
    if archive.len() > MAX_ENTRIES {
        return Err(BadArchive::TooMany(archive.len()));
    }
    let (mut config, mut weights, mut folder) = (None, None, None);
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index)?;
        let name = entry.name()?.into_owned();
        let Some((parent, file_name)) = split(&name) else {
            return Err(BadArchive::Path(name));
        };
        let is_elsewhere = *folder.get_or_insert_with(|| parent.to_owned()) != parent;
        if is_elsewhere || entry.is_symlink() {
            return Err(BadArchive::Path(name));
        }
        let slot = match file_name {
            CONFIG_FILE => &mut config,
            WEIGHTS_FILE => &mut weights,
            "" | README => continue,
            _ => return Err(BadArchive::Unwanted(name)),
        };
        if slot.replace(index).is_some() {
            return Err(BadArchive::Twice(name));
        }
    }
    if archive.has_duplicate_names() {
        return Err(BadArchive::Twice(WEIGHTS_FILE.to_owned()));
    }
    Ok(Places {
        config: config.ok_or(BadArchive::Missing(CONFIG_FILE))?,
        weights: weights.ok_or(BadArchive::Missing(WEIGHTS_FILE))?,
    })
}

/// How often [`ENTRY_MARK`] stands in the file: at least once for every entry that an archive can have.
fn count_marks(file: &File) -> io::Result<usize> {
    let finder = memmem::Finder::new(ENTRY_MARK);
    let overlap = ENTRY_MARK.len() - 1;
    let (mut window, mut n_marks) = (Vec::with_capacity(CHUNK_BYTES), 0);
    while file.take(CHUNK_BYTES as u64).read_to_end(&mut window)? > 0 {
        n_marks += finder.find_iter(&window).count();
        window.drain(..window.len().saturating_sub(overlap));
    }
    Ok(n_marks)
}

/// The folder, "" for none, and the file in it, "" for the folder itself. `None` for any other path.
fn split(name: &str) -> Option<(&str, &str)> {
    let (parent, file) = name.split_once('/').unwrap_or(("", name));
    let is_rooted = name.starts_with('/') || parent == ".." || parent == ".";
    let is_plain = !is_rooted && !file.contains('/') && !name.contains(['\\', ':', '\0']);
    is_plain.then_some((parent, file))
}

fn copy(
    from: impl Read,
    to: &mut impl Write,
    name: &'static str,
    max_bytes: u64,
) -> Result<(), BadArchive> {
    let mut from = from.take(max_bytes + 1);
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut n_bytes = 0;
    loop {
        // The entry's own error is the archive's fault, that of writing is this host's.
        let n = from.read(&mut chunk).map_err(ZipError::Io)?;
        if n == 0 {
            return Ok(());
        }
        n_bytes += n as u64;
        if n_bytes > max_bytes {
            return Err(BadArchive::TooLarge { name, max_bytes });
        }
        to.write_all(&chunk[..n]).map_err(BadArchive::Host)?;
    }
}

fn check_weights(path: &Path) -> Result<(), BadArchive> {
    let mut file = File::open(path).map_err(BadArchive::Host)?;
    let size_bytes = file
        .seek(io::SeekFrom::End(0))
        .and_then(|size| file.rewind().map(|()| size))
        .map_err(BadArchive::Host)?;
    let mut length = [0; LENGTH_BYTES];
    let too_short = |_| BadWeights::Malformed("it ends within its header".to_owned());
    file.read_exact(&mut length).map_err(too_short)?;
    let n = header_bytes(length)?;
    let data_bytes = size_bytes
        .checked_sub(n + LENGTH_BYTES as u64)
        .ok_or_else(|| BadWeights::Malformed("it ends within its header".to_owned()))?;
    let mut header = vec![0; n as usize];
    file.read_exact(&mut header).map_err(too_short)?;
    Ok(check_header(&header, data_bytes)?)
}

#[cfg(test)]
mod tests {
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    /// One tensor of one float.
    fn weights() -> Vec<u8> {
        let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header);
        file.extend_from_slice(&[0; 4]);
        file
    }

    fn unpacked(entries: &[(&str, &[u8])]) -> Result<String, BadArchive> {
        unpacked_by(|zip| {
            for (name, content) in entries {
                zip.start_file(*name, SimpleFileOptions::default()).unwrap();
                zip.write_all(content).unwrap();
            }
        })
    }

    fn unpacked_by(fill: impl FnOnce(&mut ZipWriter<File>)) -> Result<String, BadArchive> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.zip");
        let mut zip = ZipWriter::new(File::create(&path).unwrap());
        fill(&mut zip);
        zip.finish().unwrap();
        unpack(&path, &folder.path().join("weights"), 1000)
    }

    #[test]
    fn an_adapter_is_found_at_the_top_or_in_one_folder() {
        let weights = weights();
        for folder in ["", "my-adapter/"] {
            let at = |name: &str| format!("{folder}{name}");
            let entries = [at(README), at(WEIGHTS_FILE), at(CONFIG_FILE)];
            let entries: [(&str, &[u8]); 3] = [
                (&entries[0], b"# mine"),
                (&entries[1], &weights),
                (&entries[2], b"{}"),
            ];
            assert_eq!(unpacked(&entries).unwrap(), "{}");
        }
    }

    #[test]
    fn what_is_no_adapter_alone_is_refused() {
        let weights = weights();
        let good: [(&str, &[u8]); 2] = [(CONFIG_FILE, b"{}"), (WEIGHTS_FILE, &weights)];
        let with = |name, content| unpacked(&[good[0], good[1], (name, content)]).unwrap_err();
        for name in [
            "adapter_model.bin",
            "training_args.bin",
            "chat_template.jinja",
        ] {
            assert!(matches!(with(name, b""), BadArchive::Unwanted(_)), "{name}");
        }
        for name in [
            "../README.md",
            "/README.md",
            "a/b/README.md",
            "a\\README.md",
            "C:README.md",
        ] {
            assert!(matches!(with(name, b""), BadArchive::Path(_)), "{name}");
        }
        assert!(matches!(
            unpacked(&good[..1]),
            Err(BadArchive::Missing(WEIGHTS_FILE))
        ));
        assert!(matches!(
            unpacked(&good[1..]),
            Err(BadArchive::Missing(CONFIG_FILE))
        ));
        let many: Vec<String> = (0..9).map(|i| i.to_string()).collect();
        let many: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), &b""[..])).collect();
        assert!(matches!(unpacked(&many), Err(BadArchive::TooMany(9))));
        let short = &weights[..weights.len() - 1];
        let cut = unpacked(&[good[0], (WEIGHTS_FILE, short)]);
        assert!(matches!(cut, Err(BadArchive::Weights(_))), "{cut:?}");
        let binary = unpacked(&[(CONFIG_FILE, b"\xff"), good[1]]);
        assert!(matches!(binary, Err(BadArchive::Encoding)));
    }

    #[test]
    fn a_bomb_stops_at_the_limit_and_a_link_is_no_file() {
        let bomb = vec![0; 1_000_000];
        let refused = unpacked(&[(CONFIG_FILE, b"{}"), (WEIGHTS_FILE, &bomb)]).unwrap_err();
        assert!(matches!(
            refused,
            BadArchive::TooLarge {
                max_bytes: 1000,
                ..
            }
        ));
        let refused = unpacked(&[(CONFIG_FILE, &bomb), (WEIGHTS_FILE, b"")]).unwrap_err();
        assert!(matches!(
            refused,
            BadArchive::TooLarge {
                name: CONFIG_FILE,
                ..
            }
        ));
        let link = unpacked_by(|zip| {
            zip.add_symlink(CONFIG_FILE, "/etc/passwd", SimpleFileOptions::default())
                .unwrap();
        });
        assert!(matches!(link, Err(BadArchive::Path(_))), "{link:?}");
    }

    #[test]
    fn a_directory_of_very_many_entries_is_not_even_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.zip");
        // Marks that lie across the end of what is read at a time count too.
        let marks = [&[0; CHUNK_BYTES - 2][..], &ENTRY_MARK.repeat(100)].concat();
        std::fs::write(&path, marks).unwrap();
        let refused = unpack(&path, &folder.path().join("weights"), 1000);
        assert!(
            matches!(refused, Err(BadArchive::TooMany(100))),
            "{refused:?}"
        );
    }

    #[test]
    fn bytes_that_are_no_archive_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.zip");
        for bytes in [&b""[..], b"PK", &[0x80, 2, b'}', b'q']] {
            std::fs::write(&path, bytes).unwrap();
            let refused = unpack(&path, &folder.path().join("weights"), 1000);
            assert!(matches!(refused, Err(BadArchive::Zip(_))), "{refused:?}");
        }
    }
}
