package partman

import "encoding/json"

// saved is an action as JSON: with what Apply needs of it besides what a person reads.
type saved struct {
	action
	Subject       string `json:"subject,omitempty"`
	PastRetention bool   `json:"past_retention,omitempty"`
}

type action Action // without the methods

// MarshalJSON writes the action so that a plan that was read back can be applied.
func (a Action) MarshalJSON() ([]byte, error) {
	return json.Marshal(saved{action(a), a.subject, a.pastRetention})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (a *Action) UnmarshalJSON(text []byte) error {
	var s saved
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	*a = Action(s.action)
	a.subject, a.pastRetention = s.Subject, s.PastRetention
	return nil
}
