//! Stop strings: an answer ends before the first of them, and no part of one is shown.

/// Text on its way to the client, as far as no stop string can begin in it.
pub(super) struct StopGuard {
    stops: Vec<String>,
    /// Not yet shown: it may be the beginning of a stop string.
    held: String,
}

/// What may be shown now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub text: String,
    /// A stop string came right after `text`.
    pub stopped: bool,
}

impl StopGuard {
    pub(super) fn new(stops: &[String]) -> Self {
        let stops = stops
            .iter()
            .filter(|stop| !stop.is_empty())
            .cloned()
            .collect();
        Self {
            stops,
            held: String::new(),
        }
    }

    /// Takes more text of the answer.
    pub(super) fn push(&mut self, text: &str) -> Shown {
        self.held += text;
        if let Some(at) = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min()
        {
            self.held.truncate(at);
            return Shown {
                text: std::mem::take(&mut self.held),
                stopped: true,
            };
        }
        let from = self.held.len() - self.longest_beginning();
        let rest = self.held.split_off(from);
        Shown {
            text: std::mem::replace(&mut self.held, rest),
            stopped: false,
        }
    }

    /// The rest of an answer that ends without a stop string.
    pub(super) fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of `held` that a stop string may begin with.
    fn longest_beginning(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let tail = self.held.len().saturating_sub(longest.saturating_sub(1));
        (tail..self.held.len())
            .filter(|at| self.held.is_char_boundary(*at))
            .find(|at| {
                self.stops
                    .iter()
                    .any(|stop| stop.starts_with(&self.held[*at..]))
            })
            .map_or(0, |at| self.held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes `parts`; the shown parts, and whether the answer was stopped.
    fn run(stops: &[&str], parts: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut guard = StopGuard::new(&stops);
        let mut shown = Vec::new();
        for part in parts {
            let next = guard.push(part);
            shown.push(next.text);
            if next.stopped {
                return (shown, true);
            }
        }
        shown.push(guard.flush());
        (shown, false)
    }

    fn check(stops: &[&str], parts: &[&str], shown: &[&str], stopped: bool) {
        let expected = shown.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            run(stops, parts),
            (expected, stopped),
            "{stops:?} in {parts:?}"
        );
    }

    #[test]
    fn nothing_of_a_stop_string_is_shown_wherever_it_is_cut() {
        check(&["END"], &["go E", "N", "D on"], &["go ", "", ""], true);
        check(&["END"], &["go E", "NOUGH"], &["go ", "ENOUGH", ""], false);
        check(&["END"], &["go E"], &["go ", "E"], false);
        check(&["aab"], &["aa", "ab"], &["", "a"], true);
        check(&["\n\n"], &["a\n", "\n", "b"], &["a", ""], true);
        check(&["é!"], &["caf", "é", "!"], &["caf", "", ""], true);
        check(&[], &["all", " of it"], &["all", " of it", ""], false);
        check(&[""], &["x"], &["x", ""], false);
    }

    #[test]
    fn the_earliest_of_several_stop_strings_ends_the_answer() {
        check(&["three", "two"], &["one two three"], &["one "], true);
    }
}
