//! Writes "newc" cpio archives, the initramfs format of Linux.
//!
//! Format: Linux Documentation/driver-api/early-userspace/buffer-format.rst.

/// An archive being written. Everything in it belongs to root and is dated 1970, so equal contents give equal bytes.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

impl Archive {
    /// `path` has no leading slash. Parents come first.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// `mode` is the permission bits.
    ///
    /// # Panics
    /// If `contents` is 4 GiB or more, which the format cannot hold.
    pub fn file(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.entry(path, FILE | mode, (0, 0), contents);
    }

    pub fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes());
    }

    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER_DEVICE | 0o600, (major, minor), &[]);
    }

    /// The finished archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.header("TRAILER!!!", 0, (0, 0), 0, 0);
        self.pad(512);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.inode += 1;
        let size = u32::try_from(contents.len()).expect("a file in an initramfs is smaller than 4 GiB");
        self.header(path, mode, device, self.inode, size);
        self.bytes.extend_from_slice(contents);
        self.pad(4);
    }

    fn header(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), inode: u32, size: u32) {
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        let name_size = path.len() as u32 + 1;
        // Inode, mode, uid, gid, links, mtime, size, device of the archive (2), device of the node (2), name size, checksum.
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    fn sample() -> Vec<u8> {
        let mut archive = Archive::default();
        archive.directory("dev");
        archive.character_device("dev/console", 5, 1);
        archive.file("init", 0o755, b"#!/bin/sh\n");
        archive.symlink("sh", "busybox");
        archive.finish()
    }

    /// Path, mode, device numbers and contents.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// Reads an archive back by the format's own rules.
    fn read(mut bytes: &[u8]) -> Vec<Entry> {
        let total = bytes.len();
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |i: usize| u32::from_str_radix(std::str::from_utf8(&bytes[6 + 8 * i..14 + 8 * i]).unwrap(), 16).unwrap();
            let (mode, size, device, name_size) = (field(1), field(6) as usize, (field(9), field(10)), field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_size - 1], 0);
            let data = (110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert!(total.is_multiple_of(512) && bytes[data..].iter().all(|b| *b == 0));
                return entries;
            }
            entries.push((name, mode, device, bytes[data..data + size].to_vec()));
            bytes = &bytes[(data + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn reads_back() {
        assert_eq!(
            read(&sample()),
            [
                ("dev".into(), 0o040_755, (0, 0), vec![]),
                ("dev/console".into(), 0o020_600, (5, 1), vec![]),
                ("init".into(), 0o100_755, (0, 0), b"#!/bin/sh\n".to_vec()),
                ("sh".into(), 0o120_777, (0, 0), b"busybox".to_vec()),
            ]
        );
    }

    #[test]
    fn the_cpio_tool_agrees() {
        let Ok(mut cpio) =
            Command::new("cpio").arg("-tv").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()
        else {
            return; // not installed
        };
        cpio.stdin.take().unwrap().write_all(&sample()).unwrap();
        let listing = String::from_utf8(cpio.wait_with_output().unwrap().stdout).unwrap();
        for wanted in ["drwxr-xr-x", "5,   1", "sh -> busybox", "-rwxr-xr-x"] {
            assert!(listing.contains(wanted), "{wanted} not in\n{listing}");
        }
    }
}
