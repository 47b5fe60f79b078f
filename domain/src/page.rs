//! One page of a list, as every OpenAI cursor list has it.

/// Which way a list runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    NewestFirst,
    OldestFirst,
}

/// What a client asked for: at most `limit` items after the item `after` (exclusive).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    pub after: Option<String>,
    pub limit: u64,
    pub order: Order,
}

/// Some items, and whether more follow.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub has_more: bool,
}

impl<T> Page<T> {
    /// From `limit + 1` fetched items: the extra one only tells that more follow.
    pub fn from_overfetch(mut items: Vec<T>, limit: u64) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let has_more = items.len() > limit;
        items.truncate(limit);
        Self { items, has_more }
    }

    /// A page of a list that is at hand whole, oldest first. `None`: the cursor names none of its items.
    pub fn cut(mut items: Vec<T>, request: &PageRequest, id: impl Fn(&T) -> &str) -> Option<Self> {
        if request.order == Order::NewestFirst {
            items.reverse();
        }
        if let Some(after) = &request.after {
            let seen = items.iter().position(|item| id(item) == after)?;
            items.drain(..=seen);
        }
        Some(Self::from_overfetch(items, request.limit))
    }

    /// Errors: the first one that `f` has.
    pub fn try_map<U, E>(self, f: impl FnMut(T) -> Result<U, E>) -> Result<Page<U>, E> {
        Ok(Page {
            items: self.items.into_iter().map(f).collect::<Result<_, E>>()?,
            has_more: self.has_more,
        })
    }

    pub fn map<U>(self, f: impl FnMut(T) -> U) -> Page<U> {
        Page {
            items: self.items.into_iter().map(f).collect(),
            has_more: self.has_more,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_at_hand_is_cut_as_a_stored_one_is_paged() {
        let cut = |after: Option<&str>, limit, order| {
            let after = after.map(str::to_owned);
            let request = PageRequest {
                after,
                limit,
                order,
            };
            let page = Page::cut(vec!["a", "b", "c"], &request, |item| item)?;
            Some((page.items, page.has_more))
        };
        use Order::{NewestFirst, OldestFirst};
        assert_eq!(cut(None, 2, OldestFirst), Some((vec!["a", "b"], true)));
        assert_eq!(cut(Some("b"), 2, OldestFirst), Some((vec!["c"], false)));
        assert_eq!(cut(Some("c"), 1, NewestFirst), Some((vec!["b"], true)));
        assert_eq!(cut(Some("a"), 1, NewestFirst), Some((vec![], false)));
        assert_eq!(cut(Some("d"), 1, NewestFirst), None);
    }
}
