//! What each page belongs to: a page that two things have is damage.

use std::collections::HashMap;

/// Pages noted together.
const CHUNK: u64 = 512;

/// The first page of the run that a page is in, and the byte of the file that names that run; 0 if nothing does.
type Claim = (u64, u64);

/// By page what it belongs to. Of a file with millions of pages only those near to what was read are noted.
#[derive(Debug, Default)]
pub(crate) struct Claims(HashMap<u64, Box<[Claim; CHUNK as usize]>>);

impl Claims {
    /// Notes that pages belong to what the byte `by` of the file names, which no file has at its beginning.
    ///
    /// # Errors
    /// If one of them belongs to something else.
    pub(crate) fn claim(&mut self, page: u64, run: u64, by: u64) -> Result<(), Claim> {
        let claim = (page, by);
        // All are looked at before any is noted: what does not fit takes no page from others.
        if let Some(other) = (page..page + run).map(|at| self.of(at)).find(|of| of.1 != 0 && *of != claim) {
            return Err(other);
        }
        (page..page + run).for_each(|at| *self.slot(at) = claim);
        Ok(())
    }

    fn of(&self, page: u64) -> Claim {
        self.0.get(&(page / CHUNK)).map_or((0, 0), |chunk| chunk[(page % CHUNK) as usize])
    }

    fn slot(&mut self, page: u64) -> &mut Claim {
        let chunk = self.0.entry(page / CHUNK).or_insert_with(|| Box::new([(0, 0); CHUNK as usize]));
        &mut chunk[(page % CHUNK) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::Claims;

    #[test]
    fn what_does_not_fit_takes_no_page_from_others() {
        let mut claims = Claims::default();
        assert_eq!((claims.claim(7, 1, 100), claims.claim(510, 5, 200)), (Ok(()), Ok(())));
        assert_eq!(claims.claim(7, 1, 100), Ok(()), "the same again");
        assert_eq!(claims.claim(4, 9, 300), Err((7, 100)), "a run over it");
        assert_eq!(claims.claim(5, 1, 400), Ok(()), "what is before is free still");
        assert_eq!((claims.claim(514, 1, 500), claims.claim(515, 1, 500)), (Err((510, 200)), Ok(())));
    }
}
