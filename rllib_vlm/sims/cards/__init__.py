"""GeneralPoints: make 24 from four cards, by formula. See `env.Cards` and docs/cards.md."""
