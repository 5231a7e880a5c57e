//! The tensor IR of lite3r.
